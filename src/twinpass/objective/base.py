"""The contract of an objective: losses and a metric made of the log-probabilities of given tokens."""

import math
from abc import abstractmethod
from collections.abc import Sequence, Set
from typing import Literal

import numpy as np

from twinpass.core import BASE, Evaluation, Lane, Lesson, Probe, Request, Score
from twinpass.engine.base import Engine
from twinpass.errors import ModelError
from twinpass.objective.goal import START, At, Goal, Measured, Progress, portions, silent
from twinpass.reuse.plan import Spans
from twinpass.task.example import Example

Regularise = Literal["none", "kl"]
"""What a loss holds the model to beside its answers."""


class Objective(Goal):
    """A goal of scores, which come in the order of the requests.

    One that says ``regularise = "kl"`` gets examples with anchors, and has their requests, loss and derivatives beside its own.
    """

    regularise: Regularise = "none"

    @abstractmethod
    def requests(self, examples: Sequence[Example]) -> list[Request]:
        """What has to be scored for a batch."""

    @abstractmethod
    def loss(self, examples: Sequence[Example], scores: Sequence[Score]) -> float:
        """The mean loss of the batch (nats); it need not be differentiable."""

    @abstractmethod
    def metric(self, examples: Sequence[Example], scores: Sequence[Score]) -> float:
        """The mean of the reported metric over the batch; larger is better."""

    def measure(
        self, engine: Engine, examples: Sequence[Example], lanes: Sequence[Lane], spans: Spans | None, at: At
    ) -> Measured:
        scores = engine.score(self.requests(examples), lanes, spans)
        losses = tuple(self.loss(examples, own) for own in scores.values)
        return Measured(losses, scores.work, scores.cache, scores.prefix, scores.values)

    def evaluate(
        self, engine: Engine, examples: Sequence[Example], progress: Progress = silent, at: At = START
    ) -> Evaluation:
        metric = loss = 0.0
        done = 0
        each: list[float] = []
        for part in portions(examples, self.portion):
            values = engine.score(self.requests(part), [BASE]).values[0]
            metric += self.metric(part, values) * len(part)
            loss += self.loss(part, values) * len(part)
            each += self._each(part, values)
            done += len(part)
            progress(done)
        error = float(np.std(each, ddof=1)) / math.sqrt(done) if done > 1 else None
        return Evaluation(self.metric_name, metric / len(examples), loss / len(examples), len(examples), error)

    def learn(self, examples: Sequence[Example], lesson: Lesson | None) -> "tuple[Objective, Sequence[Example]]":
        return self, examples

    def largest(self, examples: Sequence[Example]) -> list[Request]:
        return self.requests(examples)

    def warm(
        self, engine: Engine, examples: Sequence[Example], probes: Sequence[Probe], since: Set[int | None]
    ) -> None:
        engine.warm(self.requests(examples), probes, since)

    def _each(self, examples: Sequence[Example], scores: Sequence[Score]) -> list[float]:
        """The metric of every example by itself."""
        found, left = list[float](), list(scores)
        for example in examples:
            count = len(self.requests([example]))
            found.append(self.metric([example], left[:count]))
            del left[:count]
        return found


def scored(goal: Goal) -> Objective:
    """The goal, if it is one of scores.

    Raises:
        ModelError: it is not.
    """
    if not isinstance(goal, Objective):
        raise ModelError(f"{type(goal).__name__} has no scores to differentiate; use 'spsa' along random directions")
    return goal
