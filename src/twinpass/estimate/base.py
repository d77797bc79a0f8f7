"""The contract of an estimator."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from twinpass.core import Estimate, Lane, Probe, Score
from twinpass.errors import ConfigError
from twinpass.objective.goal import Goal
from twinpass.settings import STRICT, Several
from twinpass.task.example import Example


@dataclass(frozen=True, config=STRICT)
class Estimator(ABC):
    """Which lanes to score for some probes, and what their losses say about the gradient.

    Args:
        probes: directions a step, q.

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

    @model_validator(mode="before")
    @classmethod
    def _require_own(cls, given: Any) -> Any:
        """Refuse what is said of the engine.

        Raises:
            ConfigError: saying where it goes.
        """
        named = (given.kwargs or {}) if isinstance(given, ArgsKwargs) else {}
        if problems := [
            f"{key}: it is not said of an estimator any more, but beside it: finetune(..., {key}={named[key]!r})"
            for key in ("noise", "perturbation")
            if key in named and key not in cls.__dataclass_fields__
        ]:
            raise ConfigError(cls.__name__, problems)
        return given

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
