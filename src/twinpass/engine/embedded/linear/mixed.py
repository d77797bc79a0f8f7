"""Products in bfloat16 that keep what two signs differ by: lanes travel as their sum and their difference.

With x+ and x- the inputs of the lanes W + eps Z and W - eps Z, s = x+ + x- and t = x+ - x-::

    y+ + y- = W s + eps Z t        y+ - y- = W t + eps Z s

Each of s, t, W and Z is rounded to bfloat16 relative to its own size, so that the difference, however small, keeps its
eight bits, and the roundings of s and W are the same for both signs. ``eps Z t`` is of second order, and left out: see
docs/maths/bfloat16.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from twinpass.core import Lane, Probe
from twinpass.engine.embedded.linear.arithmetic import Arithmetic, Plain
from twinpass.engine.embedded.linear.lanes import LaneWeights, runs
from twinpass.engine.embedded.linear.products import halved, of_linear, prepacked, product, rounded_product
from twinpass.errors import ModelError
from twinpass.model.causal import output_layer
from twinpass.perturb.gemm import pairs, sums
from twinpass.perturb.gemm.sums import NO_LANE, LaneIndices
from twinpass.perturb.layout import flat_view
from twinpass.phases import phase
from twinpass.settings import ComputeDtype

LEAVE_OUT = "or leave engine.compute_dtype out"


@dataclass(frozen=True, slots=True)
class Pairing:
    """Which lanes are of opposite signs, by their places: arrays over parts, as :mod:`twinpass.perturb.gemm.sums` takes them.

    Part ``p`` is the pair ``plus[p]`` and ``minus[p]``, or ``plus[p]`` on its own where ``minus[p]`` is NO_LANE; ``difference[p]`` is where
    a pair's difference comes, after all parts, and ``scales[p]`` that of ``plus[p]``.
    """

    lanes: tuple[Lane, ...]
    plus: LaneIndices
    minus: LaneIndices
    difference: LaneIndices
    scales: NDArray[np.float64]

    @classmethod
    def of(cls, lanes: Sequence[Lane]) -> "Pairing":
        """The lanes by twos, as far as there is the opposite sign of each."""
        left = dict(enumerate(lanes))
        parts = []
        while left:
            first, lane = next(iter(left.items()))
            del left[first]
            opposite = (i for i, other in left.items() if (other.probe, other.scale) == (lane.probe, -lane.scale))
            second = next(opposite, NO_LANE) if lane.probe is not None else NO_LANE
            left.pop(second, None)
            parts.append((first, second))
        plus, minus = np.array(parts, np.int64).reshape(-1, 2).T.copy()
        scales = np.array([lanes[place].scale for place in plus], np.float64)
        return cls(tuple(lanes), plus, minus, len(parts) - 1 + np.cumsum(minus != NO_LANE), scales)

    @property
    def places(self) -> tuple[LaneIndices, LaneIndices, LaneIndices]:
        """``plus``, ``minus`` and ``difference``, as :mod:`twinpass.perturb.gemm.sums` takes them."""
        return self.plus, self.minus, self.difference

    def join(self, low: Tensor, y: Tensor) -> None:
        """Write lanes to ``y`` [lanes, rows, out] from what ``low`` [parts + pairs, rows, out] is of them."""
        sums.join(_array(low), *self.places, _array(y))

    def probes(self, weights: LaneWeights, name: str) -> list[tuple[Probe | None, int, int]]:
        """Directions that a parameter moves along, by neighbouring parts: first, and one past the last."""
        return list(runs([weights.probe(name, self.lanes[place]) for place in self.plus]))


class Low:
    """Rows [lanes, rows, in] in bfloat16, laid out as they are asked for.

    ``source`` is what they are made of, held so that nothing else comes to lie in its place.
    """

    def __init__(self, source: Tensor, pairing: Pairing) -> None:
        self.source, self.pairing = source, pairing
        self._version = -1 if source.is_inference() else source._version

    def is_of(self, source: Tensor, pairing: Pairing) -> bool:
        """Whether these are the rows of ``source`` as it is now."""
        if source.is_inference() or source._version != self._version or self.pairing is not pairing:
            return False
        return source.data_ptr() == self.source.data_ptr() and source.shape == self.source.shape

    @cached_property
    def rows(self) -> Tensor:
        """[parts + pairs, rows, in]: the sum of each pair, or a lane on its own, then the pairs' differences."""
        rows = torch.empty((len(self.pairing.lanes), *self.source.shape[1:]), dtype=torch.bfloat16)
        sums.split(_array(self.source.contiguous()), *self.pairing.places, _array(rows))
        return rows

    @cached_property
    def tiles(self) -> NDArray[np.uint16]:
        """As :func:`twinpass.perturb.gemm.pairs.split` returns them."""
        pairing = self.pairing
        return pairs.split(_array(self.source.contiguous()), pairing.plus, pairing.minus, pairing.scales)


class Paired(Arithmetic):
    """Products in bfloat16 of float32 rows by float32 weights, accumulated in float32; see the top of this file.

    Weights that are not trained are held a second time, in bfloat16 and prepacked, unless :class:`Prepacked` holds them so;
    trained ones are rounded where they are multiplied. Lanes whose opposite is not in the pass round like any product in bfloat16.

    Args:
        head: a layer that multiplies in the dtype of its weights.
    """

    everywhere: ClassVar[bool] = True

    def __init__(self, head: nn.Module | None) -> None:
        self._head = head
        self._fixed: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()
        self._last: Low | None = None
        self._pairing = Pairing.of(())

    def moved(self, weights: LaneWeights, name: str, rows: Tensor) -> Tensor:
        weights.visited.add(name)
        pairing, parameters = self._paired(weights.lanes), weights.parameters
        low, (key, _) = self._low(rows, pairing), parameters.keys_of[name]
        y = rows.new_empty((*rows.shape[:2], parameters[name].shape[0]))
        probes = list(pairing.probes(weights, name))
        if any(probe is None for probe, _, _ in probes):
            base = low.rows.new_empty((*rows.shape[:2], y.shape[2]))
            for first, last in weights.spans(name):
                base[:, :, first:last] = _product(low.rows, parameters[name][first:last].detach().bfloat16())
            pairing.join(base, y)
        for probe, first, last in probes:
            if probe is not None:
                part = (pairing.plus[first:last], pairing.minus[first:last], pairing.scales[first:last])
                flat, out = parameters.flat[name], _array(y)
                pairs.multiply(low.tiles[first:last], flat, *part, out, probe.seed, key, weights.distribution)
        return y

    def fixed(self, lanes: Sequence[Lane], layer: nn.Module, rows: Tensor, bias: Tensor | None) -> Tensor:
        pairing = self._paired(lanes)
        base = product(self._low(rows, pairing).rows, self._held(layer))
        y = rows.new_empty((*rows.shape[:2], base.shape[2]))
        pairing.join(base, y)
        return y if bias is None else y.add_(bias)

    @phase("linear")
    def alone(self, layer: nn.Module, x: Tensor) -> Tensor:
        """What a layer returns in a pass of the base weights, rows [..., in]."""
        weight = self.rounded(layer)
        if weight is None:
            return of_linear(layer, x)
        y = rounded_product(x, weight)
        return y.add_(layer.bias.detach()) if isinstance(layer.bias, Tensor) else y

    def rounded(self, layer: nn.Module) -> Tensor | None:
        """A weight as it is multiplied [out, in], in bfloat16; None for the head's, which stays as it is."""
        return None if layer is self._head else self._held(layer)

    def _held(self, layer: nn.Module) -> Tensor:
        weight = layer.get_parameter("weight").detach()
        if weight.dtype is torch.bfloat16:
            return weight
        if layer not in self._fixed:
            self._fixed[layer] = prepacked(halved(weight.to_dense())[0])
        return self._fixed[layer]

    def forget(self) -> None:
        """Let go of what is held a second time."""
        self._fixed.clear()
        self._last = None

    def _paired(self, lanes: Sequence[Lane]) -> Pairing:
        if self._pairing.lanes != tuple(lanes):
            self._pairing = Pairing.of(lanes)
        return self._pairing

    def _low(self, rows: Tensor, pairing: Pairing) -> Low:
        """The rows in bfloat16, which several layers in a row may ask for."""
        if self._last is None or not self._last.is_of(rows, pairing):
            self._last = Low(rows, pairing)
        return self._last


def _product(low: Tensor, weight: Tensor) -> Tensor:
    """[n, rows, in] by [out, in]."""
    return torch.mm(low.flatten(0, 1), weight.t()).view(*low.shape[:2], -1)


def _array(x: Tensor) -> NDArray[Any]:
    """A tensor's memory, row after row."""
    return flat_view(x).reshape(x.shape)


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
            "compute_dtype = 'bfloat16' needs both signs in one pass, on keys and values of their own: use engine.perturbation = "
            f"'tandem' and a reuse.policy that is exact, {LEAVE_OUT}"
        )
    if any(isinstance(module, Conv1D) for module in model.modules()):
        raise ModelError(
            f"compute_dtype = 'bfloat16' knows nn.Linear, and {type(model).__name__} has Conv1D; {LEAVE_OUT}"
        )
    return Paired(output_layer(model))
