"""Two-sided simultaneous perturbation (Spall 1992; MeZO's Algorithm 1 and its n-SPSA, arXiv 2305.17333)."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic.dataclasses import dataclass

from twinpass.core import Estimate, Lane, Probe
from twinpass.estimate.base import Estimator
from twinpass.settings import STRICT


@dataclass(frozen=True, config=STRICT)
class Spsa(Estimator):
    """``g_k = (L(theta + eps z_k) - L(theta - eps z_k)) / (2 eps)`` for each of ``probes`` directions.

    Bias against the directional derivative ``z . grad L``: O(eps^2), from the third derivative.
    """

    bias_order: ClassVar[int] = 2
    two_sided: ClassVar[bool] = True

    def lanes(self, probes: Sequence[Probe], eps: float) -> list[Lane]:
        return [Lane(probe, sign, eps) for probe in probes for sign in (1, -1)]

    def estimate(self, probes: Sequence[Probe], eps: float, losses: Sequence[float]) -> Estimate:
        pairs = tuple(zip(losses[0::2], losses[1::2], strict=True))
        gradients = tuple((plus - minus) / (2 * eps) for plus, minus in pairs)
        return Estimate(tuple(probes), eps, pairs, gradients)
