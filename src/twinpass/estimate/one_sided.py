"""One-sided simultaneous perturbation: the losses of plus lanes against that of the base lane, which all probes share."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic.dataclasses import dataclass

from twinpass.core import BASE, Estimate, Lane, Probe
from twinpass.estimate.base import Estimator
from twinpass.settings import STRICT


@dataclass(frozen=True, config=STRICT)
class OneSided(Estimator):
    """``g_k = (L(theta + eps z_k) - L(theta)) / eps``: 1 + q lanes instead of 2 q.

    Bias against ``z . grad L``: (eps / 2) z^T H z, of first order in eps (docs/maths/one_sided.md).

    Args:
        normalise: divide by the standard deviation of the plus losses instead of eps, as FZOO does (Dang et al. 2025,
            arXiv 2506.09034; meant for Rademacher noise). The step's length then follows the losses' scale, not the gradient's.
    """

    bias_order: ClassVar[int] = 1

    normalise: bool = False

    def __post_init__(self) -> None:
        if self.normalise and self.probes < 2:
            raise ValueError("normalise: one loss has no standard deviation; set probes to 2 or more")

    def lanes(self, probes: Sequence[Probe], eps: float) -> list[Lane]:
        return [BASE, *(Lane(probe, 1, eps) for probe in probes)]

    def estimate(self, probes: Sequence[Probe], eps: float, losses: Sequence[float]) -> Estimate:
        base, *plus = losses
        scale = float(np.std(plus, ddof=1)) if self.normalise else eps
        gradients = tuple((loss - base) / scale if scale else 0.0 for loss in plus)
        return Estimate(tuple(probes), eps, tuple((loss, base) for loss in plus), gradients)
