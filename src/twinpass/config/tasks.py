"""The tasks that a configuration can name: where their rows come from, what is made of them, and what is minimised."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass as record
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, ValidationInfo
from pydantic.dataclasses import dataclass

from twinpass.core import Tokens
from twinpass.model.defaults import Defaults
from twinpass.model.trainable import Trainable
from twinpass.objective.base import Objective
from twinpass.objective.choice import Choice
from twinpass.objective.completion import Completion
from twinpass.objective.generation import Generation
from twinpass.objective.goal import Goal
from twinpass.settings import STRICT, Count, Index
from twinpass.task.chat import ChatTemplate
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.completion import CompletionTemplate
from twinpass.task.forms import recognised
from twinpass.task.forms import whole as whole_row
from twinpass.task.limits import Limits, Truncate
from twinpass.task.rows import Item, OnError, Row
from twinpass.task.sources.read import Role, called, flattened, read
from twinpass.task.template import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _sources(value: Any, info: ValidationInfo) -> Any:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{info.field_name}: expected a string that is not empty, or an array of such, got {value!r}")
    return tuple(names)


Sources = Annotated[tuple[str, ...], BeforeValidator(_sources)]
"""One source of rows, or several."""

HeldOutShare = Annotated[float, Field(ge=0, lt=1)]


@record(frozen=True)
class Reading:
    """How rows are read: by which template, to minimise what; ``form`` is the name of a form that was recognised.

    Without an ``objective``, it is the task's own :meth:`TaskSettings.goal`.
    """

    template: Template
    objective: Objective | None
    form: str = ""


@record(frozen=True)
class WritingTools:
    """What texts are written and read with: a tokenizer, tokens that end a text, and how tokens are chosen."""

    tokenizer: "PreTrainedTokenizerBase"
    ends: Tokens
    generation: Generation


@dataclass(frozen=True, config=STRICT)
class TaskSettings(ABC):
    """Rows, and what becomes of them.

    ``train`` and ``eval``: files (or patterns such as "data/*.jsonl"), folders or hub names of Hugging Face datasets, or "-"; the first
    ``train_rows`` and ``eval_rows`` of them are used, by default all. Without ``eval``, ``eval_rows`` or a share of ``eval_fraction`` is
    held out of the rows to train on, by the run's seed.
    The last ``shots`` rows of ``train`` stand solved in front of every prompt, and are not trained on.
    ``on_error``: rows that cannot be used end the run ("stop") or are left out ("skip"). ``truncate``: a row longer than ``window``
    tokens (by default the model's) is an "error", or loses tokens on the "left" or "right" of its text.
    """

    chooses: ClassVar[bool]
    writes: ClassVar[bool] = False
    """Whether the model writes texts while it is trained."""

    train: Sources = field(default=(), kw_only=True)
    eval: Sources = field(default=(), kw_only=True)
    train_rows: Count | None = field(default=None, kw_only=True)
    eval_rows: Count | None = field(default=None, kw_only=True)
    eval_fraction: HeldOutShare = field(default=0.1, kw_only=True)
    shots: Index = field(default=0, kw_only=True)
    on_error: OnError = field(default="stop", kw_only=True)
    truncate: Truncate = field(default="error", kw_only=True)
    window: Count | None = field(default=None, kw_only=True)

    @abstractmethod
    def reading(self, rows: Sequence[Row]) -> Reading:
        """How rows such as these, of which there is one at least, are read.

        Raises:
            DataError: they do not show it.
        """

    @property
    def source(self) -> str:
        """What the rows to train on are called."""
        return ", ".join(map(called, self.train))

    def problems(self) -> list[str]:
        """What is missing in a configuration file."""
        return ([] if self.train else ["[task] train: is missing"]) + self.idle()

    def idle(self) -> list[str]:
        """Settings that would change nothing beside others."""
        if self.eval_fraction == TaskSettings.eval_fraction or not (self.eval or self.eval_rows):
            return []
        instead = "eval names the rows" if self.eval else "eval_rows says how many rows"
        return [f"[task] eval_fraction: no effect, as {instead} that are held out; leave one of them out"]

    def rows(self) -> tuple[list[Item], list[Item] | None]:
        """Rows to train on, demonstrations and those to be held out included; and rows held out from the beginning, if any.

        Raises:
            DataError: a source cannot be read.
        """
        train, held_out = self.sources()
        rows = self.read(train, "train", self.wanted(splits=not held_out))
        return rows, self.read(held_out, "eval", self.eval_rows) if held_out else None

    def sources(self) -> tuple[Sequence[str], Sequence[str]]:
        """Where the rows are to train on, and those that are held out, if any are named.

        Raises:
            DataError: they are not there.
        """
        return self.train, self.eval

    def read(self, sources: Sequence[str], role: Role, limit: int | None = None) -> list[Item]:
        """The rows of some sources, which may be others than the task's own.

        Raises:
            DataError: a source cannot be read, or they hold fewer rows.
        """
        return read(sources, role, limit)

    def limits(self, window: int | None, vocabulary: int | None, room: int = 0) -> Limits:
        """What a model with such a window can read of its rows; prompts without answers need ``room``."""
        return Limits(min(filter(None, (self.window, window)), default=None), vocabulary, self.truncate, room)

    def within(self, items: Iterable[Item]) -> Iterable[Item]:
        """The rows that rows which are at hand hold."""
        return items

    def wanted(self, *, splits: bool) -> int | None:
        """How many rows of the training source have to be read, where some of them are held out (``splits``) or not; None: all."""
        if self.shots or self.train_rows is None:
            return None
        return self.train_rows + (self.held_out(self.train_rows) if splits else 0)

    def held_out(self, train: int) -> int:
        """How many rows are held out beside ``train`` others."""
        return self.eval_rows or round(train * self.eval_fraction / (1 - self.eval_fraction))

    def suited(self, trainable: type[Trainable] | Trainable) -> Defaults:
        """What suits this task and what is trained, where nothing is said."""
        return trainable.defaults

    @property
    def usual(self) -> Mapping[str, str]:
        """What goes without saying in a section [objective]; nothing where only the rows show what they are."""
        return {}

    def goal(self, reading: Reading, tools: WritingTools) -> Goal:
        """What is minimised of rows that are read so.

        Raises:
            TwinpassError: it cannot be had.
        """
        assert reading.objective is not None
        return reading.objective

    @property
    def ground(self) -> dict[str, str]:
        """Hashes by name of what this task stands on besides its rows and settings."""
        return {}


@dataclass(frozen=True, config=STRICT)
class ChoiceTask(TaskSettings, ChoiceTemplate):
    """Choose the right one of some options."""

    @property
    def usual(self) -> Mapping[str, str]:
        return {"kind": "choice"}

    def reading(self, rows: Sequence[Row]) -> Reading:
        return Reading(self, Choice())


@dataclass(frozen=True, config=STRICT)
class CompletionTask(TaskSettings, CompletionTemplate):
    """Write a text."""

    @property
    def usual(self) -> Mapping[str, str]:
        return {"kind": "completion"}

    def reading(self, rows: Sequence[Row]) -> Reading:
        return Reading(self, Completion())


@dataclass(frozen=True, config=STRICT)
class ChatTask(TaskSettings, ChatTemplate):
    """Write the assistant's turns of conversations."""

    @property
    def usual(self) -> Mapping[str, str]:
        return {"kind": "completion"}

    def reading(self, rows: Sequence[Row]) -> Reading:
        return Reading(self, Completion())


@dataclass(frozen=True, config=STRICT)
class AutoTask(TaskSettings):
    """What the rows' own fields say: ``messages``; ``prompt`` and ``completion``; ``instruction``, ``input`` and ``output``; or ``text`` and ``label``.

    ``chat_template_kwargs`` go to the tokenizer's chat template, where rows are conversations.
    """

    chooses: ClassVar[bool] = True

    chat_template_kwargs: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def read(self, sources: Sequence[str], role: Role, limit: int | None = None) -> list[Item]:
        return read(sources, role, limit) if role == "rows" else read(sources, role, limit, within=whole_row)

    def within(self, items: Iterable[Item]) -> Iterable[Item]:
        return flattened(items, whole_row)

    def reading(self, rows: Sequence[Row]) -> Reading:
        form, template = recognised(rows, self.chat_template_kwargs)
        return Reading(template, Choice() if isinstance(template, ChoiceTemplate) else Completion(), form)


def whole(section: str, values: dict[str, Any], task: TaskSettings | None) -> dict[str, Any]:
    """A section's values; if it is [objective], of the task's usual kind or of none that it names, with what is usual."""
    usual = {} if task is None or section != "objective" or not values else task.usual
    return {**usual, **values} if values.get("kind", usual.get("kind")) == usual.get("kind") else values


def kind_of(keys: Any) -> str:
    """The kind of task that these keys of a section [task] are of, if it does not say."""
    if "rewards" in keys:
        return "reward"
    if "name" in keys:
        return "named"
    if "options" in keys:
        return "choice"
    if "completion" in keys or "prompt" in keys:
        return "completion" if "completion" in keys else "choice"
    return "chat" if "messages" in keys else "auto"
