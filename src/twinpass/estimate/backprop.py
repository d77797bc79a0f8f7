"""The gradient itself, by reverse mode over the tokens that follow cached prompts: no probes, no eps."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic.dataclasses import dataclass

from twinpass.core import BASE, Estimate, Lane, Probe
from twinpass.estimate.base import Estimator
from twinpass.settings import STRICT


@dataclass(frozen=True, config=STRICT)
class Backprop(Estimator):
    """The exact gradient of adapters or upper layers, for [optimizer] kind "adamw"; on the embedded engine.

    The graph holds the rows that lanes would not share (docs/training.md): with activated adapters those of suffixes and answers,
    with adapters or weights of upper layers all rows of those layers. ``probes`` has no meaning here.
    """

    bias_order: ClassVar[int] = 2
    differentiates: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.probes != Estimator.probes:
            raise ValueError(
                "probes: an exact gradient is taken along no direction; leave it out, or name an estimator of probes, such as 'spsa'"
            )

    def lanes(self, probes: Sequence[Probe], eps: float) -> list[Lane]:
        return [BASE]

    def estimate(self, probes: Sequence[Probe], eps: float, losses: Sequence[float]) -> Estimate:
        (loss,) = losses
        return Estimate((), eps, ((loss, loss),), ())
