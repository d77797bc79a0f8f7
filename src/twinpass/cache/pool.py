"""Where keys and values lie: one tensor a layer, a row a slot."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(slots=True)
class Pool:
    """Keys and values of ``slots`` tokens; memory is touched as slots are written.

    A slot serves layers below ``cut`` *or* those from ``cut`` on, never both: the former belong to weights that all
    lanes share, the latter to a lane. So both kinds lie in the same tensors. ``cut`` = 0 means one kind only.

    Tensors are made at the first write: [slots, heads, width] in the model's dtype.
    """

    slots: int
    cut: int = 0
    _keys: dict[int, Tensor] = field(default_factory=dict)
    _values: dict[int, Tensor] = field(default_factory=dict)
    _hidden: Tensor | None = None

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [n, heads, width] of one layer."""
        plane = self._plane(layer)
        if plane not in self._keys:
            self._keys[plane] = keys.new_empty((self.slots, *keys.shape[1:]))
            self._values[plane] = values.new_empty((self.slots, *values.shape[1:]))
        self._keys[plane][slots] = keys
        self._values[plane][slots] = values

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of a layer's keys and values, [n, heads, width] each."""
        plane = self._plane(layer)
        return self._keys[plane][slots], self._values[plane][slots]

    def write_hidden(self, slots: Tensor, hidden: Tensor) -> None:
        """Store the hidden states [n, size] that enter layer ``cut``."""
        if self._hidden is None:
            self._hidden = hidden.new_empty((self.slots, hidden.shape[1]))
        self._hidden[slots] = hidden

    def read_hidden(self, slots: Tensor) -> Tensor:
        """A copy of stored hidden states [n, size]."""
        assert self._hidden is not None
        return self._hidden[slots]

    def _plane(self, layer: int) -> int:
        return layer if layer < self.cut else layer - self.cut
