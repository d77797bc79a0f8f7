"""What a run learns by where its configuration does not say: chosen by what was measured (docs/training.md)."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from twinpass.config.named import TaskByName
from twinpass.config.tasks import AutoTask, ChatTask, TaskSettings
from twinpass.errors import TwinpassError
from twinpass.estimate.base import Estimator
from twinpass.model.defaults import (
    CHOSEN,
    CHOSEN_ANYWHERE,
    EXACT,
    PROJECTIONS,
    PROJECTIONS_OF_TEXTS,
    WRITTEN,
    Defaults,
    among,
)
from twinpass.model.trainable import Trainable
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.fields import plain
from twinpass.task.forms import form_of_all
from twinpass.task.rows import Row
from twinpass.task.sources.lines import STDIN, beginning_of_standard_input
from twinpass.task.sources.read import beginning

GLOBBED = set("*?[")
LOOKED = 1000
"""Rows that are looked at before all are read: their labels tell how many options there are."""


@dataclass(frozen=True)
class Learner:
    """A kind of [trainable], the settings that go with it (None: its own), and why it was chosen, for the log."""

    trainable: str
    reason: str
    defaults: Defaults | None = None


CHOOSING = Learner("activated", "options are learned soonest along the exact gradient over cached prompts", CHOSEN)
CHOOSING_AT_THE_END = Learner(
    "informed",
    "prompts end alike without a suffix, so that directions that forward passes tell act on their last token",
)
CHOOSING_FORWARD = Learner(
    "informed", "options are learned along directions that forward passes tell, as no gradient is taken"
)
CHOOSING_SERVED = Learner(
    "informed",
    "options are learned soonest along directions that forward passes of a second copy of the model tell, in this machine's main memory; "
    "[trainable] kind = 'activated' does without it",
)
WRITING = Learner("activated", "texts are learned soonest along the exact gradient over cached prompts", EXACT)
NAMED = "adapters learn soonest along the exact gradient; forward passes alone are [estimator] kind = 'spsa'"
WEIGHTS = "output projections of upper layers learn soonest by feedback of the head's error; all weights by random directions are [estimator] kind = 'spsa'"
OWN = ("full", "projections")
"""Kinds of the model's own weights that feedback tells."""
ANYWHERE = Learner(
    "lora",
    "no suffix sets the answer apart, so that adapters act on all tokens, along the exact gradient",
    EXACT,
)
CHOOSING_ANYWHERE = replace(ANYWHERE, defaults=CHOSEN_ANYWHERE)
UNSEEN = replace(
    ANYWHERE, reason="rows that cannot be looked at beforehand may be of any form, so that adapters act on all tokens"
)
SERVED = Learner("activated", "an inference server tells scores alone, which random directions make do with")
SERVED_ANYWHERE = replace(SERVED, trainable="lora")
SPELT = "the kind that goes with the task"
REWARDED = Learner(
    "lora", "texts that scored better than others of their prompt become likelier, along the exact gradient", WRITTEN
)
COMPARED = Learner("lora", "greedy texts, and those that a server writes, tell directions apart and no more")


def learner(
    task: TaskSettings, rows: Sequence[Row], *, served: bool = False, greedy: bool = False, forward: bool = False
) -> Learner:
    """What a task is learned by where nothing is named.

    Args:
        rows: the first of its rows, for tasks whose settings do not say of what form rows are (none: they cannot be looked at).
        served: the model runs in another process, which tells scores and takes no gradient.
        greedy: texts are written greedily, so that two of one prompt are the same and cannot be held against each other.
        forward: directions are to be fitted by forward passes, as no gradient can be taken or none is wanted; if ``served``,
            that a second copy of the model may be held here for it.
    """
    if task.writes:
        return COMPARED if served or greedy else REWARDED
    if isinstance(task, AutoTask) and not rows and not served:
        return UNSEEN
    chooses, suffix, alike = _shape(task, rows)
    if served and chooses and alike and suffix and forward:
        return CHOOSING_SERVED
    if served:
        return SERVED if suffix else SERVED_ANYWHERE
    if chooses and alike:
        return (CHOOSING_FORWARD if forward else CHOOSING) if suffix else CHOOSING_AT_THE_END
    if chooses:
        return CHOOSING_ANYWHERE
    return WRITING if suffix else ANYWHERE


@dataclass(frozen=True)
class Said:
    """What a configuration or a call says of how to learn.

    Args:
        kind: the kind of [trainable], if it is named.
        probing: something is named that goes with probes alone, such as another estimator, noise or an approximation.
        curved: Gauss-Newton is named.
        exact: the exact gradient is named.
        low: whole gradients of the model's own weights cannot be taken, or steps along them would be lost: products or weights in bfloat16, or weights elsewhere.
        greedy, served: as for :func:`learner`.
    """

    kind: str | None = None
    probing: bool = False
    curved: bool = False
    exact: bool = False
    low: bool = False
    greedy: bool = False
    served: bool = False


def learner_of(task: TaskSettings, rows: Sequence[Row], said: Said) -> Learner:
    """What a run learns by: what is named, and what suits the task in the place of the rest. ``rows`` are as for :func:`learner`.

    A learner without ``defaults`` takes those of its weights.
    """
    if said.kind is not None:
        suited = None if said.probing or said.low or said.served else _along_gradient(task, said.kind, rows, said)
        reason = WEIGHTS if said.kind in OWN else NAMED
        return _among(options_of(task, rows), Learner(said.kind, reason if suited else "", suited))
    forward = said.curved or (said.served and not (said.probing or said.exact))
    found = learner(task, rows, served=said.served, greedy=said.greedy, forward=forward)
    return replace(found, reason=SPELT, defaults=None) if said.probing else _among(options_of(task, rows), found)


def _among(options: int, found: Learner) -> Learner:
    """The learner for so many options, where adapters learn them along the exact gradient."""
    if found.defaults not in (CHOSEN, CHOSEN_ANYWHERE):
        return found
    return replace(found, defaults=among(options, found.defaults))


def options_of(task: TaskSettings, rows: Sequence[Row]) -> int:
    """How many options a task has, by its settings or its first ``rows``; 0: that is not known."""
    if isinstance(task, AutoTask):
        return len({str(plain(row.fields.get("label"))) for row in rows})
    template = task.named.template if isinstance(task, TaskByName) else task
    return len(template.options) if isinstance(template, ChoiceTemplate) else 0


def _along_gradient(task: TaskSettings, kind: str, rows: Sequence[Row], said: Said) -> Defaults | None:
    """Defaults for named weights that learn along a whole gradient; None where they learn along probes.

    The model's own weights take the exact gradient only where it is named: its graph and AdamW's moments are as large as they are.
    """
    if kind in OWN:
        if said.exact or task.writes:
            return None
        return PROJECTIONS if _shape(task, rows)[0] else PROJECTIONS_OF_TEXTS
    if kind not in ("lora", "activated") or (task.writes and said.greedy):
        return None
    if task.writes:
        return WRITTEN
    if not _shape(task, rows)[0]:
        return EXACT
    return CHOSEN if kind == "activated" else CHOSEN_ANYWHERE


def chosen(task: TaskSettings | None, values: Mapping[str, Any], *, probing: bool = False) -> Learner:
    """The learner of a configuration; ``task`` is None where that section is at fault.

    ``probing``: of its sections on reuse or on the objective, one names what goes with probes alone.
    """
    kind = _kind(values, "trainable")
    if task is None:
        return CHOOSING if kind is None else Learner(kind, "")
    generation, engine = values.get("generation"), values.get("engine")
    along_probes = _kind(values, "optimizer") not in (None, "adamw", "relative")
    model, estimator = values.get("model"), values.get("estimator", {})
    along = ({}, {"kind": "backprop"}, *([{"kind": "feedback"}] if kind in OWN else []))
    said = Said(
        kind,
        probing or along_probes or (bool(values.get("epsilon")) and not estimator) or estimator not in along,
        _kind(values, "estimator") == "gauss_newton",
        _kind(values, "estimator") == "backprop",
        kind in OWN
        and (
            (isinstance(engine, Mapping) and engine.get("compute_dtype") == "bfloat16")
            or (isinstance(model, Mapping) and model.get("dtype", "float32") not in ("float32", "float64"))
            or _kind(values, "engine") not in (None, "torch")
        ),
        isinstance(generation, Mapping) and generation.get("temperature") == 0,
        _kind(values, "engine") == "sglang",
    )
    return learner_of(task, _first(task) if isinstance(task, AutoTask) else (), said)


def stepping(estimator: Estimator | None, trainable: Trainable | None) -> str:
    """The kind of optimizer that goes with them, where none is named."""
    if estimator is None or not estimator.whole:
        return "sgd"
    return "relative" if estimator.fed_back and trainable is not None and not trainable.adapter else "adamw"


def reached(trainable: Trainable, estimator: Estimator | type[Estimator]) -> Trainable:
    """What is moved of weights that were named: all, or what feedback tells of them."""
    return (trainable.fed_back() if estimator.fed_back else None) or trainable


def _shape(task: TaskSettings, rows: Sequence[Row]) -> tuple[bool, bool, bool]:
    """Whether the task chooses, whether its prompts have one suffix, and whether they all end with the same token at least."""
    if isinstance(task, AutoTask):
        form = form_of_all(rows)
        return (form.chooses, form.suffix, form.suffix) if form else (False, False, False)
    if isinstance(task, TaskByName):
        template = task.named.template
        return template.chooses, bool(task.suffix or template.suffix), task.ends_alike
    if isinstance(task, ChatTask):
        return False, True, True
    prompt, suffix = (str(getattr(task, name, "")) for name in ("prompt", "suffix"))
    return task.chooses, bool(suffix) and "{" not in suffix, _ends_alike(prompt + suffix)


def _ends_alike(prompt: str) -> bool:
    """Whether all prompts of this template end with the same token, as they do unless a field is what they end with."""
    return bool(prompt.strip()) and not prompt.rstrip(" ").endswith("}")


def _first(task: TaskSettings) -> Sequence[Row]:
    """The first rows of what lies here; none where they would have to be fetched, or cannot be read, which is said in its turn."""
    sources = task.train
    if not sources:
        return ()
    if sources[0] == STDIN:
        return _piped(min(LOOKED, task.train_rows or LOOKED))  # no more than are read anyway: others may never come
    path = Path(sources[0])
    if not path.exists() and not (path.is_absolute() and GLOBBED & set(sources[0])):
        return ()
    stamp = path.stat().st_mtime_ns if path.exists() else 0
    return _looked(sources[0], stamp)


def _piped(limit: int) -> Sequence[Row]:
    """The first rows of standard input; none where nobody pipes anything in."""
    if sys.stdin is None or sys.stdin.isatty():
        return ()
    try:
        return beginning_of_standard_input(limit)
    except (TwinpassError, OSError):
        return ()


@lru_cache(maxsize=8)
def _looked(source: str, stamp: int) -> Sequence[Row]:
    """The same of one source, as it was at a time."""
    try:
        return beginning(source, LOOKED)
    except (TwinpassError, OSError):
        return ()


def _kind(values: Mapping[str, Any], section: str) -> Any:
    given = values.get(section)
    return given.get("kind") if isinstance(given, Mapping) else None
