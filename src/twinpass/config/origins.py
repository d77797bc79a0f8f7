"""What stands behind a source that holds more than one thing."""

from collections.abc import Sequence

from twinpass.config.tasks import TaskSettings
from twinpass.task.rows import Item, Row
from twinpass.task.sources.lines import STANDARD_INPUT
from twinpass.task.sources.read import called

OURS = ("train", "held_out", STANDARD_INPUT)
"""What rows are called that come from Python, or are piped in."""

SHOWN = 3
"""Files or splits of one source that the log names."""


def origins(task: TaskSettings, train: Sequence[Item], held_out: Sequence[Item] | None) -> list[str]:
    """The files of a pattern, of a public task's folder, or the splits of a dataset that rows were taken from, for the log."""
    found = {"training": _chosen(task, train), "held-out": _chosen(task, held_out or ())}
    notes = [f"{role} rows are those of {_joined(names)}" for role, names in found.items() if names]
    return ["; ".join(notes)] if notes else []


def _chosen(task: TaskSettings, items: Sequence[Item]) -> list[str]:
    """Sources of rows that were not given by these names."""
    given = {*task.train, *task.eval, *OURS}
    return [
        called(name)
        for name in dict.fromkeys(item.source for item in items if isinstance(item, Row))
        if name not in given
    ]


def _joined(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return f"{', '.join(names[:SHOWN])} and {rest} more" if rest > 0 else ", ".join(names)
