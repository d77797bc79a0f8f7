"""Learning-rate schedules: factors in [0, 1] that multiply ``lr``."""

import math
from collections.abc import Callable
from typing import Literal

ScheduleName = Literal["constant", "linear", "cosine", "plateau"]

CUT, PLATEAUS = 0.3, 3
"""Under ``plateau``: what a learning rate is multiplied by where evaluations gain nothing more, and how many times end a run."""

SHAPES: dict[ScheduleName, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "plateau": lambda progress: 1.0,
}


def factor(schedule: ScheduleName, step: int, steps: int, warmup: int) -> float:
    """The factor at ``step`` of ``steps``: a linear rise over ``warmup`` steps, then the schedule's shape.

    ``linear`` and ``cosine`` would reach 0 at ``step == steps``, one past the last. ``plateau`` falls by what evaluations say, which a trainer knows.
    """
    if step < warmup:
        return (step + 1) / warmup
    return SHAPES[schedule]((step - warmup) / max(1, steps - warmup))
