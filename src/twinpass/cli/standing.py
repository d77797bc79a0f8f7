"""What ``twinpass eval`` measures: a configuration's base model, or a run as it stands after a step."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from twinpass.cli.replay import restore
from twinpass.config.encode import encode, encoded
from twinpass.config.origins import origins
from twinpass.config.tasks import TaskSettings
from twinpass.core import Sampling
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import JournalError
from twinpass.model.trainable import Activated, Trainable
from twinpass.objective.generation import Generation
from twinpass.objective.goal import At, Goal
from twinpass.perturb.noise import derive_seed
from twinpass.report.files import storing
from twinpass.task.example import Example
from twinpass.task.rows import Item
from twinpass.task.template import Template
from twinpass.train.folder import RunFolder
from twinpass.train.header import FINETUNE
from twinpass.train.history import History
from twinpass.train.journal import read
from twinpass.use.settings import goal_of, settings_of
from twinpass.use.trained import MAX_TOKENS, load
from twinpass.use.writing import Writer

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

    from twinpass.config.compose import Session
    from twinpass.config.schema import Config
    from twinpass.engine.base import Engine


@dataclass(frozen=True)
class Standing:
    """Weights after ``step`` steps in an ``engine``, and what rows are read and scored by; ``at`` is where its evaluations stand."""

    engine: "Engine"
    tokenizer: "PreTrainedTokenizerBase"
    objective: Goal
    template: Template
    held_out: Sequence[Example]
    invocation: tuple[int, ...]
    at: At
    step: int

    @property
    def _embedded(self) -> TorchEngine:
        """The engine of a run, which is always evaluated on this one."""
        assert isinstance(self.engine, TorchEngine)
        return self.engine

    def of_task(self, other: "Config", trainable: Trainable, console: "Console") -> "Standing":
        """The same weights before the held-out rows of another task."""
        if isinstance(trainable, Activated):
            trainable = replace(trainable, invocation=self.invocation)
        train, held_out = other.task.rows()
        known = encode(
            other.task,
            train,
            held_out,
            trainable,
            self._embedded.model,
            self.tokenizer,
            other.run.seed,
            generation=other.generation,
        )
        for note in (*origins(other.task, train, held_out), *known.notes):
            console.print(note, markup=False)
        return replace(self, objective=known.objective, held_out=known.held_out, template=known.template)

    def of_rows(
        self, rows: Sequence[Item], task: TaskSettings, generation: Generation | None, console: "Console"
    ) -> "Standing":
        """The same before other rows of its task."""
        room = (generation or Generation()).max_tokens - 1 if task.writes else 0
        examples, notes = encoded(
            task, rows, self.template, self._embedded.model, self.tokenizer, self.invocation, room
        )
        for note in notes:
            console.print(note, markup=False)
        return replace(self, held_out=examples)

    def writing(self, trainable: Trainable, max_tokens: int | None) -> tuple[Writer, Sampling]:
        """What continues prompts, and how."""
        writer = Writer(self._embedded, self.tokenizer, trainable.activated)
        return writer, Sampling(max_tokens or MAX_TOKENS, stop=self.template.stop)


def of_session(session: "Session[Engine]", step: int) -> Standing:
    """What was composed, and has made so many steps."""
    plan = session.plan
    return Standing(
        session.engine,
        session.tokenizer,
        plan.objective,
        session.template,
        plan.held_out,
        session.invocation,
        plan.exam(step),
        step,
    )


def of_run(run: Path, step: int | None, console: "Console", *, elsewhere: bool) -> Standing:
    """A run after ``step`` steps (default: those it keeps): as it was left, where rows of it are needed no more because they come from ``elsewhere``; otherwise replayed.

    Raises:
        TwinpassError: it has no such step, what it stands on is not there, or was changed.
    """
    left = _left(run, step) if elsewhere else None
    if left is None:
        _require_rows(run, step, elsewhere)
        return of_session(*restore(run, step, console))
    settings = settings_of(run)
    trained = load(run, step)
    values = RunFolder(run).settings()
    seed, steps = values["run"].get("seed", 0), values["optimizer"].get("steps")
    return Standing(
        trained.engine,
        trained.tokenizer,
        goal_of(settings, trained.engine.model, trained.tokenizer),
        trained.template,
        (),
        trained.engine.invocation,
        At(derive_seed(seed, "evaluation"), left, steps if isinstance(steps, int) else left),
        left,
    )


def _left(run: Path, step: int | None) -> int | None:
    """``step``, or the one that is kept, where a folder holds its weights: those that the run has left, or that twinpass replay has rebuilt."""
    if step is not None:
        return step if _holds(run / f"step-{step}") else None
    path = run / "summary.json"
    if not path.is_file() or not _holds(run):
        return None
    with storing(path, "read"):
        found = json.loads(path.read_text(encoding="utf-8"))
    kept = History.of(read(RunFolder(run).journal).records).kept(RunFolder(run).settings()["run"].get("keep", "best"))
    return kept if isinstance(found, dict) and found.get("kept_step") == kept else None  # it may have gone on since


def _holds(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in ("adapter", "model"))


def _require_rows(run: Path, step: int | None, elsewhere: bool) -> None:
    """Refuse to replay what only Python has the rows of.

    Raises:
        JournalError: saying what can be evaluated.
    """
    if FINETUNE not in RunFolder(run).settings():
        return
    if not elsewhere:
        remedy = f"name some, as in: twinpass eval {run} rows.jsonl"
    elif step is None:
        remedy = "and it has left no weights: finish it with twinpass.finetune(..., resume=True)"
    else:
        remedy = f"and weights of step {step} are not in its folder: leave --step out, or see whether 'twinpass replay {run} --step {step}' can rebuild them"
    raise JournalError(f"{run} was written by twinpass.finetune, whose rows only Python knows: {remedy}")
