"""AdamW along exact gradients."""

from pydantic.dataclasses import dataclass

from twinpass.engine.base import AdamStep
from twinpass.settings import STRICT, Count, NonNegative, Positive, Probability, Scale
from twinpass.train.optimizer import GradientOptimizer


@dataclass(frozen=True, config=STRICT)
class AdamW(GradientOptimizer):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) on the gradient of ``[estimator] kind = "backprop"``.

    ``beta1`` and ``beta2`` are how much of their past the means of gradients and of their squares keep; ``eps`` is added to the latter's root.
    ``decay`` is that of the paper: towards 0, adapters and the model's own weights alike. The gradient is scaled down to a norm of ``max_norm`` first (0: never).
    """

    lr: Scale = 2e-3
    steps: Count = 60
    beta1: Probability = 0.9
    beta2: Probability = 0.999
    eps: Positive = 1e-8
    max_norm: NonNegative = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta1", "beta2"):
            if getattr(self, name) == 1:
                raise ValueError(f"{name}: a mean that takes in nothing new; set it below 1")

    def at(self, step: int, lr: float) -> AdamStep:
        return AdamStep(step + 1, lr, self.beta1, self.beta2, self.eps, self.decay, self.max_norm)
