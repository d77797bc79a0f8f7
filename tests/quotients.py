"""Derivatives that are held against difference quotients."""

from collections.abc import Sequence

import pytest

from twinpass.core import Score
from twinpass.objective.base import Objective
from twinpass.task.example import Example

STEP = 1e-6


def slopes_of(objective: Objective, examples: Sequence[Example], scores: Sequence[Score]) -> list[Score]:
    """The objective's derivatives by every score, each of which a quotient has found, too."""
    slopes, before = objective.gradient(examples, scores), objective.loss(examples, scores)
    assert [slope.shape for slope in slopes] == [score.shape for score in scores]
    for i, score in enumerate(scores):
        for j in range(len(score)):
            moved = [own.copy() for own in scores]
            moved[i][j] += STEP
            rise = (objective.loss(examples, moved) - before) / STEP
            assert slopes[i][j] == pytest.approx(rise, abs=1e-5)
    return slopes
