"""Where keys and values lie: one tensor a layer, a row a slot."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class Pool:
    """Keys and values of ``slots`` tokens; memory is touched as slots are written.

    A slot serves layers below ``cut`` *or* those from ``cut`` on, never both: the former belong to weights that all
    lanes share, the latter to a lane. So both kinds lie in the same tensors. ``cut`` = 0 means one kind only.

    Tensors are made at the first write: [slots, heads, width] in the model's dtype, on ``device``. Slots and what is written may
    come from main memory.
    """

    slots: int
    cut: int = 0
    device: torch.device | str = "cpu"
    _keys: dict[int, Tensor] = field(default_factory=dict)
    _values: dict[int, Tensor] = field(default_factory=dict)
    _hidden: Tensor | None = None

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [n, heads, width] of one layer."""
        own_keys, own_values = self.planes(layer, keys, values)
        at = self._here(slots)
        own_keys[at] = self._here(keys)
        own_values[at] = self._here(values)

    def planes(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Where all slots' keys and values of a layer lie, [slots, heads, width] each; such as these are going to be stored."""
        plane = self._plane(layer)
        if plane not in self._keys:
            self._keys[plane] = keys.new_empty((self.slots, *keys.shape[1:]), device=self.device)
            self._values[plane] = values.new_empty((self.slots, *values.shape[1:]), device=self.device)
        return self._keys[plane], self._values[plane]

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of a layer's keys and values at ``slots`` [n], [n, heads, width] each."""
        keys, values = self.of(layer)
        at = self._here(slots)
        return keys.index_select(0, at), values.index_select(0, at)

    def of(self, layer: int) -> tuple[Tensor, Tensor]:
        """All slots' keys and values of a layer that was written before, [slots, heads, width] each; only to read from."""
        plane = self._plane(layer)
        return self._keys[plane], self._values[plane]

    def write_hidden(self, slots: Tensor, hidden: Tensor) -> None:
        """Store the hidden states [..., size] that enter some layer."""
        if self._hidden is None:
            self._hidden = hidden.new_empty((self.slots, hidden.shape[-1]), device=self.device)
        self._hidden[self._here(slots)] = hidden

    def read_hidden(self, slots: Tensor) -> Tensor:
        """A copy of stored hidden states [..., size]."""
        assert self._hidden is not None
        return self._hidden[self._here(slots)]

    def combine(
        self, target: Tensor, terms: Sequence[tuple[float, Tensor]], layers: range, *, hidden: bool = False
    ) -> None:
        """``target = sum_i weight_i * slots_i``: keys and values of some layers, and hidden states if asked for.

        Sums are taken in float32 at least, and rounded once.
        """
        target, terms = self._here(target), [(weight, self._here(slots)) for weight, slots in terms]
        for planes in (self._keys, self._values):
            for layer in layers:
                plane = planes[self._plane(layer)]
                plane[target] = _sum(plane, terms).to(plane.dtype)
        if hidden:
            assert self._hidden is not None
            self._hidden[target] = _sum(self._hidden, terms).to(self._hidden.dtype)

    def distance(self, terms: Sequence[tuple[float, Tensor]], layer: int) -> tuple[float, float]:
        """Norms of ``sum_i weight_i * slots_i`` over a layer's keys, and over its values."""
        terms = [(weight, self._here(slots)) for weight, slots in terms]
        keys, values = (_sum(planes[self._plane(layer)], terms) for planes in (self._keys, self._values))
        return float(keys.double().norm()), float(values.double().norm())

    def release(self) -> None:
        """Give the memory back: what was stored is lost."""
        self._keys.clear()
        self._values.clear()
        self._hidden = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors, whether slots were written or not."""
        hidden = [] if self._hidden is None else [self._hidden]
        return sum(tensor.nbytes for tensor in (*self._keys.values(), *self._values.values(), *hidden))

    def _plane(self, layer: int) -> int:
        return layer if layer < self.cut else layer - self.cut

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)


def _sum(plane: Tensor, terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    wide = torch.promote_types(plane.dtype, torch.float32)
    total = torch.zeros((len(terms[0][1]), *plane.shape[1:]), dtype=wide, device=plane.device)
    largest = torch.finfo(wide).max
    for weight, slots in terms:
        known = weight if abs(weight) <= largest else math.copysign(math.inf, weight)
        total.add_(plane[slots].to(wide), alpha=known)
    return total
