"""Products in bfloat16 that keep what two signs differ by: lanes travel as their sum and their difference.

With x+ and x- the inputs of the lanes W + eps Z and W - eps Z, s = x+ + x- and t = x+ - x-::

    y+ + y- = W s + eps Z t        y+ - y- = W t + eps Z s

Each of s, t, W and Z is rounded to bfloat16 relative to its own size, so that the difference, however small, keeps its
eight bits, and the roundings of s and W are the same for both signs. ``eps Z t`` is of second order, and left out: see
docs/maths/bfloat16.md.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from twinpass.core import Lane
from twinpass.engine.embedded.arithmetic import Arithmetic, Plain
from twinpass.engine.embedded.lanes import LaneWeights, runs
from twinpass.engine.embedded.products import in_blocks, product
from twinpass.errors import ModelError
from twinpass.perturb import halves
from twinpass.perturb.layout import flat_view

ComputeDtype = Literal["float32", "bfloat16"]
LEAVE_OUT = "or leave engine.compute_dtype out"


@dataclass(frozen=True, slots=True)
class Part:
    """Two lanes of opposite signs, by their places, or a ``plus`` on its own."""

    plus: int
    minus: int | None = None


def parts_of(lanes: Sequence[Lane]) -> list[Part]:
    """The lanes by twos, as far as there is the opposite sign of each."""
    left = dict(enumerate(lanes))
    parts = []
    while left:
        first, lane = next(iter(left.items()))
        del left[first]
        opposite = (i for i, other in left.items() if (other.probe, other.scale) == (lane.probe, -lane.scale))
        second = next(opposite, None) if lane.probe is not None else None
        left.pop(first if second is None else second, None)
        parts.append(Part(first, second))
    return parts


@dataclass(slots=True)
class Low:
    """Rows in bfloat16 [parts + pairs, rows, in]: the sum of each pair, or a lane on its own, then the pairs' differences.

    ``source`` is what they were made of, held so that nothing else comes to lie in its place.
    """

    source: Tensor
    version: int
    parts: Sequence[Part]
    rows: Tensor

    @classmethod
    def of(cls, source: Tensor, parts: Sequence[Part]) -> "Low":
        """Round, two lanes at a time."""
        pairs = [part for part in parts if part.minus is not None]
        rows = torch.empty((len(parts) + len(pairs), *source.shape[1:]), dtype=torch.bfloat16)
        flat, low, after = source.contiguous(), rows, len(parts)
        for i, part in enumerate(parts):
            if part.minus is None:
                low[i].copy_(flat[part.plus])
            else:
                views = [flat_view(x) for x in (flat[part.plus], flat[part.minus], low[i], low[after])]
                halves.split(*views)
                after += 1
        return cls(source, -1 if source.is_inference() else source._version, parts, rows)

    def is_of(self, source: Tensor, parts: Sequence[Part]) -> bool:
        """Whether these are the rows of ``source`` as it is now."""
        if source.is_inference() or source._version != self.version or self.parts != parts:
            return False
        return source.data_ptr() == self.source.data_ptr() and source.shape == self.source.shape


class Paired(Arithmetic):
    """Products in bfloat16 of float32 rows by float32 weights, accumulated in float32; see the top of this file.

    Weights that are not trained are held a second time, in bfloat16 and in oneDNN's blocks; trained ones are rounded
    tile by tile. Lanes whose opposite is not in the pass round like any product in bfloat16.
    """

    everywhere: ClassVar[bool] = True

    def __init__(self) -> None:
        self._fixed: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()
        self._last: Low | None = None

    def moved(self, weights: LaneWeights, name: str, rows: Tensor) -> Tensor:
        parts, master = parts_of(weights.lanes), weights.parameters[name]
        low = self._low(rows, parts)
        y = torch.empty((*rows.shape[:2], master.shape[0]))
        for first, last in weights.spans(name):
            base = _product(low, master[first:last].bfloat16())
            _join(parts, base, list(_shifts(weights, name, first, last, low, parts)), y, first)
        return y

    def fixed(self, lanes: Sequence[Lane], layer: nn.Module, rows: Tensor, bias: Tensor | None) -> Tensor:
        parts = parts_of(lanes)
        if layer not in self._fixed:
            weight = layer.get_parameter("weight").detach()
            self._fixed[layer] = in_blocks(weight.to_dense().bfloat16())
        base = product(self._low(rows, parts), self._fixed[layer])
        y = torch.empty((*rows.shape[:2], base.shape[2]))
        _join(parts, base, [None] * len(parts), y, 0)
        return y if bias is None else y.add_(bias)

    def _low(self, rows: Tensor, parts: Sequence[Part]) -> Tensor:
        """The rows in bfloat16, which several layers in a row may ask for."""
        if self._last is None or not self._last.is_of(rows, parts):
            self._last = Low.of(rows, parts)
        return self._last.rows


Shift = tuple[Tensor, float]
"""A product with z, and the factor it counts by."""


def _shifts(
    weights: LaneWeights, name: str, first: int, last: int, low: Tensor, parts: Sequence[Part]
) -> Iterator[Shift | None]:
    """By part, what the perturbation of these rows of the weight adds; None where it is not perturbed."""
    lanes = [weights.lanes[part.plus] for part in parts]
    for probe, start, stop in runs([weights.probe(name, lane) for lane in lanes]):
        if probe is None:
            yield from [None] * (stop - start)
        else:
            products = _product(low[start:stop], weights.direction(name, probe, first, last))
            yield from zip(products, (lane.scale for lane in lanes[start:stop]), strict=True)


def _product(low: Tensor, weight: Tensor) -> Tensor:
    """[n, rows, in] by [out, in]."""
    return torch.mm(low.flatten(0, 1), weight.t()).view(*low.shape[:2], -1)


def _array(x: Tensor) -> NDArray[Any]:
    """A matrix's memory, row after row."""
    return flat_view(x).reshape(x.shape)


def _join(parts: Sequence[Part], base: Tensor, shifts: Sequence[Shift | None], y: Tensor, first: int) -> None:
    """Write the lanes' products into the columns of ``y`` from ``first`` on."""
    after = len(parts)
    for part, total, shift in zip(parts, base, shifts, strict=False):
        if part.minus is None:
            alone = y[part.plus, :, first : first + total.shape[1]]
            alone.copy_(total)
            if shift is not None:
                alone.add_(shift[0], alpha=shift[1])
        else:
            difference = base[after]
            moved, scale = (difference, 0.0) if shift is None else shift
            plus, minus = y[part.plus], y[part.minus]
            halves.join(_array(total), _array(difference), _array(moved), scale, _array(plus), _array(minus), first)
            after += 1


def arithmetic_of(compute_dtype: ComputeDtype | None, model: PreTrainedModel, *, one_pass: bool) -> Arithmetic:
    """How linear layers multiply.

    Args:
        compute_dtype: what in; None: in the dtype of the weights.
        one_pass: whether lanes run together, each on keys and values of its own.

    Raises:
        ModelError: that cannot be.
    """
    if compute_dtype is None:
        return Plain()
    if model.dtype is not torch.float32:
        raise ModelError(
            f"compute_dtype = {compute_dtype!r} is for float32 weights, and the model's are {model.dtype}: set model.dtype = 'float32', "
            f"{LEAVE_OUT} to compute in the dtype of the weights"
        )
    if compute_dtype == "float32":
        return Plain()
    if model.device.type != "cpu":
        raise ModelError(
            f"compute_dtype = 'bfloat16' runs on the CPU only, and the model is on {model.device}: load it in bfloat16 (model.dtype), "
            f"set [engine] device = 'cpu', {LEAVE_OUT}"
        )
    if not one_pass:
        raise ModelError(
            "compute_dtype = 'bfloat16' needs both signs in one pass, on keys and values of their own: use estimator.perturbation = "
            f"'tandem' and a reuse.policy that is exact, {LEAVE_OUT}"
        )
    if any(isinstance(module, Conv1D) for module in model.modules()):
        raise ModelError(
            f"compute_dtype = 'bfloat16' knows nn.Linear, and {type(model).__name__} has Conv1D; {LEAVE_OUT}"
        )
    return Paired()
