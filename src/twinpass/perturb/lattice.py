"""Exact in-place arithmetic: every weight is a whole number of quanta, so additions commute and undo to the bit.

Each tensor gets a quantum ``range * 2**-24`` (float32; ``2**-53`` for float64), ``range`` a power of two with
room for weights to double. Whole multiples of the quantum below ``range`` are exactly representable, and the
distributions on a grid (``binomial`` in halves, ``rademacher`` in ones; quarters would do) with a power-of-two eps move weights by
whole quanta. Updates ``scale * z`` that fall between two quanta are rounded stochastically from the term's seed,
unbiased, and to the same integer whenever the term is added or taken back.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from twinpass.core import Probe
from twinpass.errors import LatticeError
from twinpass.perturb.noise import Distribution
from twinpass.perturb.parameters import Parameters

MANTISSA = {torch.float32: 24, torch.float64: 53}
SMALLEST_RANGE = 4.0


@dataclass(frozen=True, slots=True)
class LatticeTerm:
    """``theta += perturbation * z + times * round(update * z)`` for the ``z`` of ``probe``."""

    probe: Probe
    perturbation: float = 0.0
    update: float = 0.0
    times: int = 1


def power_of_two(eps: float) -> float:
    """The power of two nearest to ``eps`` on a logarithmic scale: the eps that in-place mode really uses."""
    return float(2.0 ** round(math.log2(eps)))


class Lattice:
    """The quanta of a set of parameters, and addition on them. Creating it rounds the weights to the lattice.

    Args:
        parameters: the weights.
        distribution: of ``z``.
        quanta: by name, those found on whole parameters, where these are shards.

    Raises:
        LatticeError: bfloat16 weights (8 bits of mantissa cannot hold a perturbation), or Gaussian noise.
    """

    def __init__(
        self, parameters: Parameters, distribution: Distribution, quanta: Mapping[str, float] | None = None
    ) -> None:
        if distribution == "gaussian":
            raise LatticeError("in-place mode needs noise on a grid: set engine.noise to 'binomial' or 'rademacher'")
        self.parameters = parameters
        self.distribution: Distribution = distribution
        self.quantum: dict[str, float] = {}
        self._limit: dict[str, int] = {}
        for name, tensor in parameters.items():
            if tensor.dtype not in MANTISSA:
                raise LatticeError(
                    f"{name} is {tensor.dtype}: in-place mode restores exactly only in float32 or float64; "
                    "set model.dtype = 'float32', or engine.perturbation = 'tandem'"
                )
            self.quantum[name] = _quantum(name, tensor) if quanta is None else quanta[name]
            self._limit[name] = 2 ** MANTISSA[tensor.dtype]
        self.snap()

    def snap(self) -> None:
        """Round every weight to the nearest whole number of quanta: at most half a quantum off (1.2e-7 for |w| < 2)."""
        for name, tensor in self.parameters.items():
            quantum = self.quantum[name]
            tensor.div_(quantum).round_().mul_(quantum).add_(
                0.0
            )  # no negative zeros: addition would not bring them back

    def add(self, terms: Sequence[LatticeTerm]) -> None:
        """Add all terms in one pass over the weights, or none of them.

        Raises:
            LatticeError: a perturbation is not a whole number of quanta, or a weight would leave the lattice's range.
        """
        if not terms:
            return
        if not all(math.isfinite(term.update) and math.isfinite(term.perturbation) for term in terms):
            raise LatticeError("an update or perturbation is not a finite number; lower optimizer.lr")
        moves = self.parameters.moves
        own = {name: [term for term in terms if moves(name, term.probe.block)] for name in self.quantum}
        whole = {name: [self._whole(name, term.perturbation) for term in chosen] for name, chosen in own.items()}
        moved: list[str] = []
        for name in self.quantum:
            if outside := self._move(name, own[name], whole[name], 1):
                for earlier in moved:
                    self._move(earlier, own[earlier], whole[earlier], -1)
                raise LatticeError(
                    f"{outside} weights of {name} would grow beyond {self.quantum[name] * self._limit[name]:g}, where "
                    "in-place arithmetic is exact; lower optimizer.lr, or use engine.perturbation = 'tandem'"
                )
            moved.append(name)

    def _move(self, name: str, terms: Sequence[LatticeTerm], whole: Sequence[int], sign: int) -> int:
        """Add ``sign`` times the terms to one tensor; or nothing, and return how many weights would not fit."""
        if not terms:
            return 0
        quantum, limit = self.quantum[name], self._limit[name]
        moved = self.parameters.backend.kernels.lattice_add(
            self.parameters.flat[name],
            np.array([term.probe.seed for term in terms], np.uint64),
            sign * np.array(whole, np.int64),
            np.clip([term.update / quantum for term in terms], -limit, limit),
            sign * np.array([term.times for term in terms], np.int64),
            *self.parameters.keys_of[name],
            quantum,
            limit,
            self.distribution,
            self.parameters.shards[name],
        )
        return int(moved)

    def _whole(self, name: str, perturbation: float) -> int:
        units = perturbation / (4 * self.quantum[name])
        if units != round(units):
            raise LatticeError(
                f"a perturbation of {name} is {units} times its grid, not a whole number; "
                "eps must be a power of two that is not too small"
            )
        return round(units)


def _quantum(name: str, tensor: Tensor) -> float:
    largest = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
    if not largest < 2.0**100:
        raise LatticeError(f"{name} holds {largest}: the lattice needs finite weights below 2**100")
    reach = max(SMALLEST_RANGE, 2.0 ** math.ceil(math.log2(2 * largest))) if largest > 0 else SMALLEST_RANGE
    return float(reach * 2.0 ** -MANTISSA[tensor.dtype])
