"""A gradient by forward passes alone: the head's exact error, fed back to every module as if nothing lay between."""

from typing import ClassVar

from pydantic.dataclasses import dataclass

from twinpass.estimate.backprop import Backprop
from twinpass.settings import STRICT


@dataclass(frozen=True, config=STRICT)
class Feedback(Backprop):
    """Residual feedback, of what writes into the residual stream: of adapters there, by [optimizer] kind "adamw", or of its weights, by "relative" (docs/maths/feedback.md).

    The loss's derivative by the state that leaves the last layer is exact and needs no graph. A module's output reaches that state along
    the residual stream, so that its own derivative is taken to be the same one: direct feedback alignment (Nøkland 2016,
    arXiv 1609.01596) with the residual stream for a path. The estimate is biased, the less the higher the layer; memory is inference's.
    ``probes`` has no meaning here.
    """

    fed_back: ClassVar[bool] = True
