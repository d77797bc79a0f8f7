"""A step on made-up rows: whether it can be made at all, and how long it takes. No weight of the model changes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from twinpass.config.learner import stepping
from twinpass.config.schema import SECTIONS
from twinpass.core import BASE, Probe
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import ModelError
from twinpass.estimate.base import Estimator
from twinpass.estimate.directions import fit
from twinpass.model.trainable import Trainable
from twinpass.objective.choice import Choice
from twinpass.reuse.plan import LanePlanner, Situation
from twinpass.task.example import Example
from twinpass.train.fitting import FIRST
from twinpass.train.optimizer import GradientOptimizer
from twinpass.train.step import Draw, Method, apply, measure

SUFFIX = 4
"""Tokens of a prompt from its activation point on."""


@dataclass(frozen=True)
class StepTime:
    """Seconds that a step of ``rows`` prompts of ``tokens`` tokens with two answers of one token is expected to take.

    ``first_seconds``: while its prompts have not been read; ``seconds``: once they have, where that is kept, and ``most_seconds`` where
    the slower of two measured steps counts. ``measured_rows`` were really run, and the rest follows from what further rows take.
    """

    estimator: str
    rows: int
    tokens: int
    seconds: float
    most_seconds: float
    first_seconds: float
    measured_rows: int


@dataclass
class MadeUp:
    """Examples of tokens drawn at random, and steps on them, on an engine whose weights they leave as they are."""

    engine: TorchEngine
    trainable: Trainable
    vocabulary: int
    objective: Choice = field(default_factory=Choice)
    _drawn: int = 0

    def examples(self, count: int, tokens: int) -> list[Example]:
        """New ones, with two answers of one token each."""
        self._drawn += 1
        drawn = np.random.default_rng(self._drawn).integers(0, self.vocabulary, (count, tokens))
        start = tokens - 1 if self.trainable.late else tokens - SUFFIX
        return [Example(tuple(map(int, row)), ((0,), (1,)), i % 2, start) for i, row in enumerate(drawn)]

    def step(self, estimator: Estimator, examples: Sequence[Example]) -> None:
        """All that a step takes, with a learning rate of 0.

        Raises:
            ModelError: what came of it are no finite numbers.
        """
        if estimator.whole:
            taken = self.engine.feedback if estimator.fed_back else self.engine.gradient
            gradient = taken(
                self.objective.requests(examples), lambda scores: self.objective.gradient(examples, scores)
            )
            _require_finite([gradient.norm])
            self.engine.descend(gradient, stepper(estimator, self.trainable).at(0, 0.0))
        else:
            self._along_probes(estimator, examples)

    def seconds_a_row(self, tokens: int, clock: Callable[[], float]) -> float:
        """What a further prompt takes to be scored under one lane."""
        took = []
        for count in (1, 3):
            requests = self.objective.requests(self.examples(count, tokens))
            start = clock()
            self.engine.score(requests, [BASE])
            took.append(clock() - start)
        return max(0.0, took[1] - took[0]) / 2

    def _along_probes(self, estimator: Estimator, examples: Sequence[Example]) -> None:
        self._drawn += 1
        if (fitting := self.trainable.fitting) is not None:
            batch = self.trainable.defaults.batch_size
            fitted, examples = examples[: -max(1, len(examples) * batch // (FIRST + batch))], list(examples)
            examples = examples[len(fitted) :]
            observed = self.engine.observe(
                self.objective.requests(fitted), lambda scores: self.objective.gradient(fitted, scores)
            )
            if not observed.finite:
                raise ModelError(NOT_FINITE)
            self.engine.use(fit(observed, self.engine.outputs, rank=fitting.rank, ridge=fitting.ridge))
        probes = [Probe(1000 * self._drawn + k) for k in range(estimator.probes)]
        draw = Draw(0, examples, probes, self.trainable.defaults.eps, 0.0)
        method = Method(estimator, self.objective, LanePlanner())
        report = measure(self.engine, method, draw, Situation(self.engine.layers))
        _require_finite([report.estimate.loss, *report.estimate.gradients, *report.estimate.preconditioned])
        apply(self.engine, report)


NOT_FINITE = "its losses are no finite numbers in this precision; try --dtype float32"


def _require_finite(found: Sequence[float]) -> None:
    """Refuse a step that would leave NaN in the weights, whatever its length."""
    if not np.isfinite(found).all():
        raise ModelError(NOT_FINITE)


def stepper(estimator: Estimator, trainable: Trainable) -> GradientOptimizer:
    """What steps along its whole gradients, with its own defaults."""
    found: GradientOptimizer = SECTIONS["optimizer"].kinds[stepping(estimator, trainable)]()
    return found


BACKWARD = 3
"""Passes that a gradient takes: one forward, and about two backward."""

GROWTH = 4
"""How many times as many rows the next measured step has."""


def timed(
    made_up: MadeUp,
    name: str,
    estimator: Estimator,
    tokens: int,
    limit: float,
    clock: Callable[[], float] = time.perf_counter,
) -> StepTime:
    """Measure steps of more and more rows, each twice, until the next would pass ``limit`` seconds or the step is whole.

    What is left follows from the line through the last two; where there is only one, from what further rows take to be scored.
    """
    trainable = made_up.trainable
    rows, began = trainable.defaults.batch_size, clock()
    kept = trainable.activated or trainable.upper is not False
    fitted = FIRST / rows if trainable.fitting is not None else 0.0
    count, points = 1, list[tuple[int, float, float, float]]()
    while True:
        examples = made_up.examples(max(2 if fitted else 1, round(count * (1 + fitted))), tokens)
        took = []
        for _ in range(3 if kept else 2):
            start = clock()
            made_up.step(estimator, examples)
            took.append(clock() - start)
        again = took[1:] if kept else took
        points.append((count, took[0] if kept else min(took), min(again), max(again)))
        if count == rows or clock() - began + GROWTH * sum(took) > limit:
            break
        count = min(GROWTH * count, rows)
    more = 0.0
    if len(points) == 1 and count < rows:
        passes = BACKWARD if estimator.whole else 2 * estimator.probes
        more = made_up.seconds_a_row(tokens, clock) * (rows - count) * (fitted + passes)
    first, least, most = (_at(rows, [(point[0], point[i]) for point in points], more) for i in (1, 2, 3))
    return StepTime(name, rows, tokens, least, max(least, most), first, count)


def _at(rows: int, points: Sequence[tuple[int, float]], more: float) -> float:
    """Seconds of ``rows`` by the line through the last two points, or ``more`` than the only one."""
    count, seconds = points[-1]
    if len(points) == 1:
        return seconds + more
    before, earlier = points[-2]
    return seconds + max(0.0, seconds - earlier) / (count - before) * (rows - count)
