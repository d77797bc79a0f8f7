"""Steps of a fixed relative length: nothing is kept of the past, and no learning rate has to be found."""

from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from twinpass.engine.base import RelativeStep
from twinpass.settings import STRICT, Count, Several, Share
from twinpass.train.optimizer import GradientOptimizer

Damping = Annotated[float, Field(ge=1e-6, le=1e6)]
"""Added to second moments: enough for float64 to divide by them, and not so much that nothing of them is left."""


@dataclass(frozen=True, config=STRICT)
class Relative(GradientOptimizer):
    """Steps of a fixed relative length, for ``[estimator] kind = "feedback"`` of the model's own weights (docs/maths/feedback.md).

    Each weight is moved by ``lr`` times its own norm, whatever the size of its gradient, along the gradient divided by its inputs' second
    moments on the batch, as K-FAC has it (Martens and Grosse 2015, arXiv 1503.05671). ``damping`` times their mean is added to these. There is no momentum,
    which would be as large as the weights.
    """

    relative: ClassVar[bool] = True

    lr: Share = 2e-3
    steps: Count = 40
    batch_size: Several = 32
    damping: Damping = 1.0
    snapshot_every: Count = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay:
            raise ValueError("decay: steps have a fixed length, which says how far weights go; leave it out")

    def at(self, step: int, lr: float) -> RelativeStep:
        return RelativeStep(lr, self.damping)
