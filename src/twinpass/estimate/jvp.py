"""The directional derivative itself, by forward-mode differentiation: the reference for other estimators."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic.dataclasses import dataclass

from twinpass.core import Estimate, Lane, Probe
from twinpass.estimate.base import Estimator
from twinpass.settings import STRICT

STEP = 1e-4
"""Log-probabilities are moved by this much of their derivative, in float64, to differentiate the objective numerically."""


@dataclass(frozen=True, config=STRICT)
class Jvp(Estimator):
    """``g_k = z_k . grad L``, without a finite difference in the weights; eps plays no part.

    Scores are linearised by forward-mode differentiation through the model; only the objective, a function of
    few numbers in float64, is differentiated by a central difference, exact to about 1e-8. Several times slower than SPSA, with
    ``z`` in memory as a whole, and without reuse.
    """

    bias_order: ClassVar[int] = 2
    differentiates: ClassVar[bool] = True

    def lanes(self, probes: Sequence[Probe], eps: float) -> list[Lane]:
        return [Lane(probe, sign, STEP, linear=True) for probe in probes for sign in (1, -1)]

    def estimate(self, probes: Sequence[Probe], eps: float, losses: Sequence[float]) -> Estimate:
        pairs = tuple(zip(losses[0::2], losses[1::2], strict=True))
        return Estimate(tuple(probes), eps, pairs, tuple((plus - minus) / (2 * STEP) for plus, minus in pairs))
