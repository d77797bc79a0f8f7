"""The contract of an estimator."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from twinpass.core import Estimate, Lane, Probe, Score
from twinpass.objective.goal import Goal
from twinpass.perturb.noise import Distribution
from twinpass.settings import STRICT, Several
from twinpass.task.example import Example


@dataclass(frozen=True, config=STRICT)
class Estimator(ABC):
    """Which lanes to score for some probes, and what their losses say about the gradient.

    Args:
        probes: directions a step, q.
        noise: distribution of the directions.
        perturbation: ``tandem`` (all lanes in one pass, weights never written) or ``inplace`` (the weights walk from
            lane to lane on an exact lattice, and eps is rounded to a power of two).

    Engines carry out ``noise`` and ``perturbation``, and are given both (:class:`twinpass.engine.subject.Subject`). They stand here as they say
    what is estimated: along which z, and at which eps there can be. A run on another engine means the same by them.

    The bias against the directional derivative ``z . grad L`` is O(eps ** ``bias_order``). ``two_sided`` estimators compare each
    probe's two signs; one that ``differentiates`` takes no difference in the weights, so that eps plays no part; a ``curved`` one uses the
    objective's gradient and curvature. Where it ``measures_length``, a learning rate of 1 is its own step. A ``whole`` gradient is taken along no probes, by reverse mode or, ``fed_back``, by forward
    passes; AdamW steps along it, or relative steps where it is fed back to weights.
    """

    bias_order: ClassVar[int]
    two_sided: ClassVar[bool] = False
    differentiates: ClassVar[bool] = False
    curved: ClassVar[bool] = False
    measures_length: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    fed_back: ClassVar[bool] = False

    probes: Several = 1
    noise: Distribution = "binomial"
    perturbation: Literal["tandem", "inplace"] = "tandem"

    def __post_init__(self) -> None:
        if self.perturbation == "inplace" and self.noise == "gaussian":
            raise ValueError("perturbation: 'inplace' needs noise on a grid; set noise to 'binomial' or 'rademacher'")

    @abstractmethod
    def lanes(self, probes: Sequence[Probe], eps: float) -> list[Lane]:
        """The weight variants to score."""

    def refine(
        self, estimate: Estimate, goal: Goal, examples: Sequence[Example], scores: Sequence[Sequence[Score]]
    ) -> Estimate:
        """The same with what single scores tell beyond the losses: ``scores[lane][request]``, lanes as :meth:`lanes` has them."""
        return estimate

    @abstractmethod
    def estimate(self, probes: Sequence[Probe], eps: float, losses: Sequence[float]) -> Estimate:
        """The gradient from ``losses``, which come in the order of :meth:`lanes`."""
