"""Projected gradients in units of their own running size: Adam with one second moment for all weights."""

import math
from collections.abc import Sequence
from typing import ClassVar

from pydantic.dataclasses import dataclass

from twinpass.core import Estimate, StepReport
from twinpass.settings import STRICT, Count, Probability, Scale
from twinpass.steps import folded
from twinpass.train.history import History
from twinpass.train.optimizer import Optimizer


@dataclass(frozen=True, config=STRICT)
class Normalised(Optimizer):
    """``theta -= lr_t * eps / q * sum_k g_k / sqrt(v_t) z_k``, ``v_t`` the mean square of the steps' ``g_k`` up to now.

    It is an exponential mean with ``beta``, corrected for its start: Adam's second moment (Kingma and Ba 2015, arXiv 1412.6980), one for
    all weights as in AdaGrad-Norm (Ward et al. 2019, arXiv 1806.01811). One for each weight would know no more: weight i's estimate ``g z_i`` has the
    mean square ``|grad L|^2 + 2 (dL/dtheta_i)^2``, which among many weights is the same for all. No g counts for more than ``sqrt(q / (1 - beta))``. ``lr`` counts in eps.
    """

    scale_free: ClassVar[bool] = True

    lr: Scale = 1.0
    steps: Count = 400
    beta: Probability = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta == 1:
            raise ValueError("beta: a mean that takes in nothing new; set it below 1")

    def lengths(self, estimate: Estimate, history: History) -> tuple[float, ...]:
        before = folded(history.steps, 0.0, self._take)
        count = len(history.steps) + 1
        root = math.sqrt(self._mean(before, estimate.gradients) / (1 - self.beta**count))
        return tuple(estimate.eps * g / root if root else 0.0 for g in estimate.gradients)

    def _take(self, mean: float, report: StepReport) -> float:
        return self._mean(mean, report.estimate.gradients)

    def _mean(self, mean: float, gradients: Sequence[float]) -> float:
        return self.beta * mean + (1 - self.beta) * sum(g * g for g in gradients) / len(gradients)
