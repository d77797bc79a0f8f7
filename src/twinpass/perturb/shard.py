"""Which elements of a parameter a piece of memory holds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """Stretches of ``width`` consecutive elements of a parameter (row-major), ``stride`` apart, the first beginning at ``start``.

    Element ``i`` of the memory is the parameter's element ``start + (i // width) * stride + i % width``. Some rows of a matrix
    are one stretch; some of its columns are a stretch a row. ``z`` is drawn by the parameter's own indices, so that shards put together
    are perturbed as the whole would be (tensor parallelism: Megatron-LM, arXiv 1909.08053).
    """

    start: int
    width: int
    stride: int

    @classmethod
    def contiguous(cls, start: int, numel: int) -> "Shard":
        """``numel`` consecutive elements from ``start`` on."""
        return cls(start, max(1, numel), max(1, numel))

    @classmethod
    def whole(cls, numel: int) -> "Shard":
        """All of a parameter."""
        return cls.contiguous(0, numel)

    @property
    def numbers(self) -> tuple[int, int, int]:
        """Start, width, stride: as kernels take them."""
        return self.start, self.width, self.stride
