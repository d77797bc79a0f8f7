"""Which elements of a logical parameter a piece of memory holds, under tensor parallelism."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """Element ``i`` of the memory is element ``start + (i // width) * stride + i % width`` of the logical parameter."""

    start: int
    width: int
    stride: int

    @classmethod
    def whole(cls, numel: int) -> "Shard":
        """All of a parameter of ``numel`` elements."""
        return cls(0, numel, numel)
