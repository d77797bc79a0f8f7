"""Learning-rate schedules: factors in [0, 1] that multiply ``lr``."""

import math
from collections.abc import Callable
from typing import Literal

ScheduleName = Literal["constant", "linear", "cosine"]

SHAPES: dict[ScheduleName, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


def factor(schedule: ScheduleName, step: int, steps: int, warmup: int) -> float:
    """The factor at ``step`` of ``steps``: a linear rise over ``warmup`` steps, then the schedule's shape.

    ``linear`` and ``cosine`` would reach 0 at ``step == steps``, one past the last.
    """
    if step < warmup:
        return (step + 1) / warmup
    return SHAPES[schedule]((step - warmup) / max(1, steps - warmup))
