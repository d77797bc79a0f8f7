"""How a run's rows were read, kept in its folder: what was trained can then be used without the rows."""

import json
from pathlib import Path

from twinpass.config.tasks import Reading
from twinpass.errors import JournalError
from twinpass.objective.choice import Choice
from twinpass.objective.completion import Completion
from twinpass.objective.goal import Goal
from twinpass.report.files import write_json
from twinpass.task.reward import RewardTemplate
from twinpass.task.saved import loaded, saved
from twinpass.task.template import Template

FILE = "reading.json"


def remember(run: Path, template: Template, objective: Goal) -> None:
    """Write it down. A template of another package is not: it is made anew from the rows."""
    try:
        values = saved(template)
    except TypeError:
        return
    score = {"score": objective.score} if isinstance(objective, Choice) else {}
    write_json(run / FILE, {"template": values, **score})


def recalled(run: Path) -> Reading | None:
    """What was written down, if anything was.

    Raises:
        JournalError: the file was changed.
    """
    path = run / FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        template = loaded(values["template"])
        chooses = Choice(**{key: values[key] for key in ("score",) if key in values})
    except (ValueError, TypeError, KeyError, StopIteration) as error:
        raise JournalError(
            f"{path} is not what twinpass wrote; delete it, and the run's rows are read once more"
        ) from error
    if isinstance(template, RewardTemplate):
        return Reading(template, None)
    return Reading(template, chooses if template.chooses else Completion())
