"""Held-out rows scored under trained weights, as what can be measured and compared."""

from collections.abc import Callable, Sequence

import numpy as np

from twinpass.core import BASE
from twinpass.engine.base import Engine
from twinpass.objective.choice import Choice
from twinpass.objective.completion import Completion
from twinpass.objective.goal import Goal, portions
from twinpass.report.measures import Choices, ScoredTexts
from twinpass.task.example import Example


def outcomes(
    engine: Engine,
    objective: Goal,
    examples: Sequence[Example],
    progress: Callable[[int], None] = lambda done: None,
) -> Choices | ScoredTexts | None:
    """What the weights as they stand make of each example; None for an objective that has no measures but its own."""
    if not isinstance(objective, Choice | Completion):
        return None
    shares, scores, done = [], [], 0
    for part in portions(examples):
        values = engine.score(objective.requests(part), [BASE]).values[0]
        if isinstance(objective, Choice):
            shares += [np.exp(logits - np.logaddexp.reduce(logits)) for logits in objective.logits(part, values)]
        else:
            scores += list(values)
        done += len(part)
        progress(done)
    return Choices(shares, np.array([example.label for example in examples])) if shares else ScoredTexts(scores)
