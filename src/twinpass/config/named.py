"""A task by its name: ours, and those that other packages offer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from twinpass.config.registry import Family
from twinpass.config.tasks import Reading, TaskSettings
from twinpass.errors import DataError, ExtensionError
from twinpass.objective.choice import Choice
from twinpass.objective.completion import Completion
from twinpass.settings import STRICT
from twinpass.task.named.base import NamedTask
from twinpass.task.rows import Item, Row
from twinpass.task.sources.read import Role, flattened, read
from twinpass.task.text import literal

NAMED = Family(
    "twinpass.task.named.base:NamedTask",
    "twinpass.named_tasks",
    {
        "sst2": "twinpass.task.named.sst2:Sst2",
        "sst5": "twinpass.task.named.sst5:Sst5",
        "rte": "twinpass.task.named.rte:Rte",
        "cb": "twinpass.task.named.cb:Cb",
        "boolq": "twinpass.task.named.boolq:BoolQ",
        "wsc": "twinpass.task.named.wsc:Wsc",
        "wic": "twinpass.task.named.wic:Wic",
        "multirc": "twinpass.task.named.multirc:MultiRc",
        "copa": "twinpass.task.named.copa:Copa",
        "squad": "twinpass.task.named.squad:Squad",
        "trec": "twinpass.task.named.trec:Trec",
        "agnews": "twinpass.task.named.agnews:AgNews",
    },
)
"""Tasks by name (docs/tasks.md). A new one is one file and one line here, or an entry point of another package."""

SCORE: Literal["mean"] = "mean"
"""How their options are compared, as in MeZO."""


@dataclass(frozen=True, config=STRICT)
class TaskByName(TaskSettings):
    """The public task ``name`` in its original files' format, with MeZO's prompts: docs/tasks.md has them all.

    ``path``: a folder with its files, or one of them. ``train`` and ``eval`` name them one by one instead, or any other rows with the same fields.
    ``suffix`` goes behind the task's own prompt, where adapters that act on the answer need more to go by.
    """

    chooses: ClassVar[bool] = True

    name: str
    path: str = field(default="", kw_only=True)
    suffix: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        try:
            known = self.name in NAMED and NAMED[self.name]
        except ExtensionError as error:
            raise ValueError(f"name: {error}") from error
        if not known:
            plain = "".join(sign for sign in self.name.lower() if sign.isalnum())
            close = get_close_matches(plain[:80], list(NAMED), 1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"name: there is no task {self.name!r:.80}{hint}; choose from {', '.join(NAMED)}")
        if self.path and self.train:
            raise ValueError("path: give either the path of the task's files, or the rows in train")

    @property
    def named(self) -> NamedTask:
        """What the name stands for."""
        task: Any = NAMED[self.name]
        made: NamedTask = task()
        return made

    @property
    def ends_alike(self) -> bool:
        """Whether all prompts end with the same text."""
        return bool(self.suffix) or self.named.ends_alike

    @property
    def source(self) -> str:
        return f"{self.name} from {self.path}" if self.path else super().source

    def problems(self) -> list[str]:
        missing = "[task] path: is missing; name the folder with the task's files"
        return ([] if self.path or self.train else [missing]) + self.idle()

    def sources(self) -> tuple[Sequence[str], Sequence[str]]:
        path = Path(self.path)
        if not self.path or path.is_file():
            return self.train or (self.path,), self.eval
        if not path.is_dir():
            raise DataError(
                f"{path}: there is no such folder or file; task.path names the folder with the files of {self.name!r}"
            )
        named = self.named
        train = _first(path, named.train_files)
        if train is None:
            there = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
            raise DataError(
                f"{path}: there is no {' or '.join(named.train_files)} to train {self.name!r} on, but {there}; "
                "name the file itself in task.path, or those to train and evaluate on in task.train and task.eval"
            )
        held_out = _first(path, named.eval_files)
        return (train,), self.eval or (() if held_out is None else (held_out,))

    def read(self, sources: Sequence[str], role: Role, limit: int | None = None) -> list[Item]:
        named = self.named
        return read(sources, role, limit, named.reader, named.within)

    def within(self, items: Iterable[Item]) -> Iterable[Item]:
        return flattened(items, self.named.within)

    def reading(self, rows: Sequence[Row]) -> Reading:
        template = self.named.template
        if self.suffix:
            template = replace(
                template, prompt=template.prompt + template.suffix, suffix=literal(self.suffix, template.syntax)
            )
        return Reading(template, Choice(score=SCORE) if template.chooses else Completion())

    @property
    def usual(self) -> Mapping[str, str]:
        return {"kind": "choice", "score": SCORE} if self.named.template.chooses else {"kind": "completion"}


def _first(folder: Path, names: Sequence[str]) -> str | None:
    return next((str(folder / name) for name in names if (folder / name).is_file()), None)
