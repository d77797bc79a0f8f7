"""``steps = "auto"``, and a schedule that goes by evaluations: what they stand for, in a file and in Python."""

from typing import Any

AUTO = "auto"
MOST = 2_000
"""Steps that a run takes at the most which ends by itself."""


def spell_steps(optimizer: dict[str, Any]) -> list[str]:
    """Put what they stand for in the place of ``steps = "auto"``, as many as evaluations gain from; returns what is wrong with that.

    They are what a schedule "plateau" takes, too, where nothing is said of them.
    """
    if optimizer.get("schedule") == "plateau":
        optimizer.setdefault("steps", AUTO)
    if optimizer.get("steps") != AUTO:
        return []
    optimizer["steps"] = MOST
    if optimizer.setdefault("schedule", "plateau") == "plateau":
        return []
    return [
        f'schedule: {optimizer["schedule"]!r} has to know the last step, which steps = "auto" leaves open; leave one of them out'
    ]
