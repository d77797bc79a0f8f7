"""Two-sided probes beside the base lane: the loss's curvature along each direction says how far to go."""

import math
from collections.abc import Sequence
from typing import ClassVar

from pydantic.dataclasses import dataclass

from twinpass.core import BASE, Estimate, Lane, Probe
from twinpass.estimate.base import Estimator
from twinpass.settings import STRICT, Scale


@dataclass(frozen=True, config=STRICT)
class LineSearch(Estimator):
    """``a_k = g_k / c_k``, the lowest point of the parabola through three losses along ``z_k``, where SPSA has ``g_k`` (docs/maths/line.md).

    ``c_k = (L+ + L- - 2 L0) / eps^2``; one base lane serves all probes. A learning rate of 1 is a whole step.

    Args:
        trust: the parabola is believed as far as so many eps, by default as far as it was measured; where it bends down, that far is gone.
    """

    bias_order: ClassVar[int] = 2
    two_sided: ClassVar[bool] = True
    measures_length: ClassVar[bool] = True

    trust: Scale = 1.0

    def lanes(self, probes: Sequence[Probe], eps: float) -> list[Lane]:
        return [*(Lane(probe, sign, eps) for probe in probes for sign in (1, -1)), BASE]

    def estimate(self, probes: Sequence[Probe], eps: float, losses: Sequence[float]) -> Estimate:
        *sided, base = losses
        pairs = tuple(zip(sided[0::2], sided[1::2], strict=True))
        gradients = tuple((plus - minus) / (2 * eps) for plus, minus in pairs)
        curvatures = ((plus + minus - 2 * base) / eps / eps for plus, minus in pairs)
        lengths = tuple(self._length(g, c, self.trust * eps) for g, c in zip(gradients, curvatures, strict=True))
        return Estimate(tuple(probes), eps, pairs, gradients, lengths)

    def _length(self, g: float, c: float, most: float) -> float:
        if not math.isfinite(c):
            return math.nan
        return g / c if abs(g) < c * most else math.copysign(most, g) if g else 0.0
