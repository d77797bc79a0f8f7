"""The tasks that a configuration can name, and what each minimises."""

from abc import abstractmethod
from dataclasses import field

from pydantic.dataclasses import dataclass

from twinpass.objective.base import Objective
from twinpass.objective.choice import Choice
from twinpass.objective.completion import Completion
from twinpass.settings import STRICT, Count, Index, Text
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.completion import CompletionTemplate
from twinpass.task.template import TextTemplate


@dataclass(frozen=True, config=STRICT)
class TaskSettings(TextTemplate):
    """A :class:`TextTemplate` and its data: ``train`` and ``eval`` files, of which the first ``*_rows`` are used.

    The last ``shots`` rows of the training file stand solved in front of every prompt, and are not trained on.
    """

    train: Text = field(kw_only=True)
    eval: Text = field(kw_only=True)
    train_rows: Count | None = None
    eval_rows: Count | None = None
    shots: Index = 0

    @abstractmethod
    def objective(self) -> Objective:
        """What is minimised, and reported."""


@dataclass(frozen=True, config=STRICT)
class ChoiceTask(TaskSettings, ChoiceTemplate):
    """Choose the right one of some options."""

    def objective(self) -> Choice:
        return Choice()


@dataclass(frozen=True, config=STRICT)
class CompletionTask(TaskSettings, CompletionTemplate):
    """Write a text."""

    def objective(self) -> Completion:
        return Completion()
