"""Score held-out examples under the base lane."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from twinpass.core import BASE, Evaluation, Score
from twinpass.engine.base import Engine
from twinpass.objective.base import Objective
from twinpass.task.example import Example

BLOCK = 32

T = TypeVar("T")


def blocks(examples: Sequence[T]) -> Iterator[Sequence[T]]:
    """The examples as they are scored, :data:`BLOCK` at a time."""
    for start in range(0, len(examples), BLOCK):
        yield examples[start : start + BLOCK]


def evaluate(
    engine: Engine,
    objective: Objective,
    examples: Sequence[Example],
    progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Metric and loss of the weights as they stand; ``progress`` is told how many examples are done."""
    metric = loss = 0.0
    done = 0
    each: list[float] = []
    for part in blocks(examples):
        values = engine.score(objective.requests(part), [BASE]).values[0]
        metric += objective.metric(part, values) * len(part)
        loss += objective.loss(part, values) * len(part)
        each += _each(objective, part, values)
        done += len(part)
        progress(done)
    error = float(np.std(each, ddof=1)) / math.sqrt(done) if done > 1 else None
    return Evaluation(objective.metric_name, metric / len(examples), loss / len(examples), len(examples), error)


def _each(objective: Objective, examples: Sequence[Example], scores: Sequence[Score]) -> list[float]:
    """The metric of every example by itself."""
    found, left = list[float](), list(scores)
    for example in examples:
        count = len(objective.requests([example]))
        found.append(objective.metric([example], left[:count]))
        del left[:count]
    return found
