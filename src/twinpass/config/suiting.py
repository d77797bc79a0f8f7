"""What ``twinpass.finetune`` learns by: what it is given, and what suits the task in the place of the rest."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from twinpass.config.automatic import watched
from twinpass.config.learner import Said, learner_of, stepping
from twinpass.config.schema import SECTIONS
from twinpass.config.tasks import TaskSettings
from twinpass.estimate.backprop import Backprop
from twinpass.estimate.base import Estimator
from twinpass.estimate.feedback import Feedback
from twinpass.model.defaults import Defaults
from twinpass.model.trainable import Trainable
from twinpass.schedule.epsilon import ConstantEpsilon, Epsilon
from twinpass.task.rows import Row
from twinpass.train.optimizer import Optimizer


class Suited(NamedTuple):
    """What a run learns by, and the ``defaults`` that suit it."""

    trainable: Trainable
    estimator: Estimator
    optimizer: Optimizer
    epsilon: Epsilon
    defaults: Defaults


@dataclass(frozen=True)
class Wanted:
    """What a call names to learn by; None: what suits."""

    trainable: Trainable | None
    estimator: Estimator | None
    optimizer: Optimizer | None
    epsilon: Epsilon | None

    def _said(self, *, greedy: bool, low: bool, probing: bool) -> Said:
        trainable, estimator, optimizer = self.trainable, self.estimator, self.optimizer
        own = trainable is not None and not trainable.adapter
        return Said(
            None if trainable is None else type(trainable).__name__.lower(),
            probing
            or estimator not in (None, Backprop(), *([Feedback()] if own else []))
            or (self.epsilon is not None and estimator is None)
            or (optimizer is not None and optimizer.along_probes),
            estimator is not None and estimator.curved,
            estimator == Backprop(),
            low,
            greedy,
        )

    def suited(self, task: TaskSettings, rows: Sequence[Row], *, greedy: bool, low: bool, probing: bool) -> Suited:
        """The whole, for a task that begins with these ``rows`` (none: they are not known); the rest is as :class:`Said` has it."""
        found = learner_of(task, rows, self._said(greedy=greedy, low=low, probing=probing))
        trainable = self.trainable or _kind("trainable", found.trainable)(**_places(found.defaults))
        suits = found.defaults or task.suited(trainable)
        estimator = self.estimator
        if estimator is None:
            probes = {} if suits.probes is None else {"probes": suits.probes}
            estimator = _kind("estimator", suits.estimator)(**probes)
        epsilon = self.epsilon or ConstantEpsilon(value=suits.eps)
        if self.optimizer is None:
            return Suited(trainable, estimator, _optimizer(estimator, trainable, suits), epsilon, suits)
        plateau = self.optimizer.schedule == "plateau"
        defaults = watched(suits) if plateau else replace(suits, patience=0)
        return Suited(trainable, estimator, self.optimizer, epsilon, defaults)


def _places(suits: Defaults | None) -> dict[str, Any]:
    """Where adapters sit, if the learner says so."""
    return {} if suits is None or suits.targets is None else {"targets": suits.targets, "first": suits.first}


def _optimizer(estimator: Estimator, trainable: Trainable, suits: Defaults) -> Optimizer:
    kind = _kind("optimizer", stepping(estimator, trainable))
    if estimator.whole and suits.along_probes:
        return kind()  # type: ignore[no-any-return]
    return kind(  # type: ignore[no-any-return]
        lr=1.0 if estimator.measures_length else suits.lr,
        steps=suits.steps,
        batch_size=suits.batch_size,
        schedule=suits.schedule,
    )


def _kind(section: str, name: str) -> Any:
    """The class of a kind."""
    return SECTIONS[section].kinds[name]
