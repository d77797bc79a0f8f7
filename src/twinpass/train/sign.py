"""The sign of each projected gradient, and no more of it."""

import math
from typing import ClassVar

from pydantic.dataclasses import dataclass

from twinpass.core import Estimate
from twinpass.settings import STRICT, Count, Scale
from twinpass.train.history import History
from twinpass.train.optimizer import Optimizer


@dataclass(frozen=True, config=STRICT)
class Sign(Optimizer):
    """``theta -= lr_t * eps / q * sum_k sign(g_k) z_k``: every probe moves the weights as far (FeedSign, Cai et al. 2025, arXiv 2501.17610).

    ``lr`` counts in eps, the length over which losses were compared: it does not change when losses are multiplied by something.
    """

    scale_free: ClassVar[bool] = True

    lr: Scale = 1.0
    steps: Count = 400

    def lengths(self, estimate: Estimate, history: History) -> tuple[float, ...]:
        return tuple(math.copysign(estimate.eps, g) if g else 0.0 for g in estimate.gradients)
