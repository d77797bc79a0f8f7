"""A live progress bar in the terminal, and one line an event that stays."""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from twinpass.core import CacheStatistics, Evaluation, StepReport, Work
from twinpass.report.fidelity import Fidelity
from twinpass.report.listener import Listener
from twinpass.report.shown import shown
from twinpass.steps import Rollback


class _Bars(Progress):
    """Progress bars, and a line below them."""

    details = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        if self.details:
            yield Text(self.details, overflow="ellipsis", no_wrap=True)


class ProgressBar(Listener):
    """Shows step, time left, loss and metric while a run goes on, on 80 columns.

    With ``verbose``, a second line has the projected gradient, eps, step time, hit rate and its sources, fidelity and cache.
    """

    def __init__(self, console: Console, verbose: bool = False) -> None:
        self._console, self._verbose = console, verbose
        self._bars = _Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=14),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[state]}"),
            console=console,
        )
        self._train = self._bars.add_task("training", total=None, visible=False, state="")
        self._steps = self._bars.add_task("restoring", total=None, visible=False, state="")
        self._cache = self._bars.add_task("rebuilding cache", total=None, visible=False, state="")
        self._held_out = self._bars.add_task("evaluating", total=None, visible=False, state="")
        self._mean: float | None = None
        self._metric = ""
        self._unrewarded = False
        self._checked: deque[StepReport] = deque(maxlen=8)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def started(self, steps: int, done: int) -> None:
        self._bars.update(self._train, total=steps, completed=done, visible=True)

    def stepped(self, report: StepReport, seconds: float) -> None:
        estimate = report.estimate
        name, value = ("reward", report.metrics["reward"]) if "reward" in report.metrics else ("loss", estimate.loss)
        if math.isfinite(value):
            self._mean = value if self._mean is None else 0.9 * self._mean + 0.1 * value
        if report.observed.exact:
            self._checked.append(report)
        if (share := report.metrics.get("frac_reward_none", 0.0)) and not self._unrewarded:
            self._unrewarded = True
            self._console.print(
                f"[yellow]step {report.step}: no reward applies to {share:.0%} of the texts, which teach nothing; metrics say so of later steps[/yellow]"
            )
        if self._verbose:
            self._bars.details = self._details(report, seconds)
        self._bars.update(self._train, completed=report.step + 1, state=f"{name} {self._mean or 0:.3f}{self._metric}")

    def _details(self, report: StepReport, seconds: float) -> str:
        estimate, size = report.estimate, report.observed.norm
        if size is None:
            size = sum(abs(g) for g in estimate.gradients) / len(estimate.gradients)
        return (
            f"  |g| {size:.3g}  {f'eps {estimate.eps:.2g}  ' if estimate.probes else ''}{seconds:.2f} s/step  "
            f"hit rate {report.work.hit_rate:.0%}{_sources(report.work)}{self._fidelity(report)}{_cache(report.cache)}{_rewards(report)}"
        )

    def _fidelity(self, report: StepReport) -> str:
        """How near g was to the exact one where it was checked last; steps that approximate nothing need none."""
        accepted, fidelity = report.observed.prefix.hit_rate, Fidelity.measured(list(self._checked))
        if fidelity is None:
            return ""
        share = "" if accepted is None else f", {accepted:.0%} of reflections accepted"
        return f"{share}, g off by {fidelity.relative_error:.2g}"

    def restoring(self, done: int, total: int) -> None:
        self._bars.update(self._steps, completed=done, total=total, visible=done < total)

    def warming(self, done: int, total: int) -> None:
        self._bars.update(self._cache, completed=done, total=total, visible=done < total)

    def evaluating(self, done: int, total: int) -> None:
        self._bars.update(self._held_out, completed=done, total=total, visible=done < total)

    def evaluated(self, step: int, evaluation: Evaluation, seconds: float) -> None:
        self._metric = f" {evaluation.metric_name} {shown(evaluation.metric_name, evaluation.metric)}"
        when = "before training" if step == 0 else f"after step {step}"
        self._console.print(
            f"held-out {evaluation.metric_name} {when}: [bold]{shown(evaluation.metric_name, evaluation.metric)}[/bold]"
            f"  (loss {evaluation.loss:.3f}, {evaluation.examples} rows, {seconds:.1f} s)"
        )

    def rolled_back(self, step: int, rollback: Rollback, lr_scale: float) -> None:
        self._bars.update(self._train, completed=rollback.to)
        self._console.print(
            f"[yellow]step {step}: {rollback.reason}; back to step {rollback.to}, learning rate times {lr_scale:g}[/yellow]"
        )

    def slowed(self, step: int, lr_scale: float) -> None:
        self._console.print(f"no longer rising: learning rate times {lr_scale:.2g}")


def _rewards(report: StepReport) -> str:
    """How far rewards differ, and how many prompts say nothing because theirs do not."""
    if "reward_std" not in report.metrics:
        return ""
    return f"  reward std {report.metrics['reward_std']:.2g}, {report.metrics['frac_reward_zero_std']:.0%} of prompts alike"


def _sources(work: Work) -> str:
    """Where the reuse came from, in shares of the demand."""
    shares = [f"{name} {count / work.demand:.0%}" for name, count in work.reused.items() if count]
    return f" ({', '.join(shares)})" if len(shares) > 1 else ""


def _cache(cache: CacheStatistics) -> str:
    """What the KV cache holds, if anything."""
    parts = [f"{name} {size / 2**20:.0f} MiB" for name, size in asdict(cache).items() if size]
    return f"  KV {', '.join(parts)}" if parts else ""
