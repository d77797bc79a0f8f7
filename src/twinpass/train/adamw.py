"""AdamW along exact gradients."""

from typing import ClassVar

from pydantic.dataclasses import dataclass

from twinpass.engine.base import AdamStep
from twinpass.settings import STRICT, Count, NonNegative, Positive, Probability, Scale
from twinpass.train.optimizer import Optimizer


@dataclass(frozen=True, config=STRICT)
class AdamW(Optimizer):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) on the gradient of ``[estimator] kind = "backprop"``.

    ``beta1`` and ``beta2`` are how much of their past the means of gradients and of their squares keep; ``eps`` is added to the latter's root.
    ``decay`` is that of the paper: towards 0, adapters and the model's own weights alike. The gradient is scaled down to a norm of ``max_norm`` first (0: never). Weights and moments are stored every
    ``snapshot_every`` steps, in the run folder: from the last snapshot a run continues, or goes back, by taking the steps after it again.
    """

    along_probes: ClassVar[bool] = False

    lr: Scale = 2e-3
    steps: Count = 60
    beta1: Probability = 0.9
    beta2: Probability = 0.999
    eps: Positive = 1e-8
    max_norm: NonNegative = 1.0
    snapshot_every: Count = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.guard_zeros:
            raise ValueError("guard_zeros: whole gradients are projected on nothing, so that none is 0; leave it out")
        for name in ("beta1", "beta2"):
            if getattr(self, name) == 1:
                raise ValueError(f"{name}: a mean that takes in nothing new; set it below 1")

    def at(self, step: int, lr: float) -> AdamStep:
        """Step ``step`` (from 0) at a learning rate."""
        return AdamStep(step + 1, lr, self.beta1, self.beta2, self.eps, self.decay, self.max_norm)
