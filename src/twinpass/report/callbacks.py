"""What a caller in Python is told while a run goes on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from twinpass.core import Evaluation, StepReport
from twinpass.report.listener import Listener
from twinpass.report.metrics import evaluation_event, rollback_event, step_event
from twinpass.steps import Rollback

Told = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Callbacks(Listener):
    """Functions that are told of steps, evaluations and rollbacks, with the fields of a line of ``metrics.jsonl``, and of the end.

    They are called when the journal holds what they are told; ``on_end`` gets the summary. What one raises ends the run, which can be
    resumed.
    """

    on_step: Told | None = None
    on_evaluation: Told | None = None
    on_rollback: Told | None = None
    on_end: Told | None = None

    def stepped(self, report: StepReport, seconds: float) -> None:
        if self.on_step is not None:
            self.on_step(step_event(report, seconds))

    def evaluated(self, step: int, evaluation: Evaluation, seconds: float) -> None:
        if self.on_evaluation is not None:
            self.on_evaluation(evaluation_event(step, evaluation, seconds))

    def rolled_back(self, step: int, rollback: Rollback, lr_scale: float) -> None:
        if self.on_rollback is not None:
            self.on_rollback(rollback_event(step, rollback, lr_scale))

    def ended(self, summary: Mapping[str, Any]) -> None:
        """The summary was written."""
        if self.on_end is not None:
            self.on_end(summary)
