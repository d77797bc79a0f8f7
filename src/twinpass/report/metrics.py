"""``metrics.jsonl``: what happened in a run, a line each, for plots and people; the journal stays the truth."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from twinpass.core import Evaluation, StepReport
from twinpass.report.fidelity import Fidelity
from twinpass.report.files import storing, write_text
from twinpass.report.listener import Listener
from twinpass.steps import Rollback


class Metrics(Listener):
    """Appends a line for every event. ``draws`` numbers steps through rollbacks, so a resumed run knows where to cut."""

    def __init__(self, path: Path, draws: int, evaluations: int) -> None:
        _cut(path, draws, evaluations)
        self._path = path
        with storing(path):
            self._file = path.open("ab", buffering=0)

    def stepped(self, report: StepReport, seconds: float) -> None:
        self._write(step_event(report, seconds))

    def evaluated(self, step: int, evaluation: Evaluation, seconds: float) -> None:
        self._write(evaluation_event(step, evaluation, seconds))

    def rolled_back(self, step: int, rollback: Rollback, lr_scale: float) -> None:
        self._write(rollback_event(step, rollback, lr_scale))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, fields: Mapping[str, Any]) -> None:
        with storing(self._path):
            self._file.write(json.dumps(fields).encode() + b"\n")


def step_event(report: StepReport, seconds: float) -> dict[str, Any]:
    """A step, as plain values."""
    estimate = report.estimate
    return {
        **_finite(report.metrics),
        "event": "step",
        "step": report.step,
        "loss": estimate.loss,
        "gradients": list(estimate.gradients),
        "clipped": list(report.clipped),
        "eps": estimate.eps,
        "lr": report.lr,
        **({} if report.observed.norm is None else {"norm": report.observed.norm}),
        "seconds": round(seconds, 6),
        "hit_rate": report.work.hit_rate,
        "token_layers": {"demand": report.work.demand, "computed": report.work.computed},
        "reused_by_source": dict(report.work.reused),
        "kv_bytes": asdict(report.cache),
        **_approximation(report),
    }


def evaluation_event(step: int, evaluation: Evaluation, seconds: float) -> dict[str, Any]:
    """An evaluation, as plain values."""
    return {
        **_finite(evaluation.metrics),
        "event": "evaluation",
        "step": step,
        "metric_name": evaluation.metric_name,
        "metric": evaluation.metric,
        "loss": evaluation.loss,
        "examples": evaluation.examples,
        "seconds": round(seconds, 6),
    }


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those that JSON can hold."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def rollback_event(step: int, rollback: Rollback, lr_scale: float) -> dict[str, Any]:
    """A rollback, as plain values."""
    return {"event": "rollback", "step": step, "to": rollback.to, "reason": rollback.reason, "lr_scale": lr_scale}


_FIELDS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "step": frozenset(
            ("step", "loss", "gradients", "clipped", "seconds", "token_layers", "reused_by_source", "kv_bytes")
        ),
        "evaluation": frozenset(("step", "metric", "loss", "examples", "seconds")),
        "rollback": frozenset(("step", "to")),
    }
)
"""What a line needs to be one; others may hold more."""


def read_metrics(path: Path) -> list[Mapping[str, Any]]:
    """The lines of a metrics file up to the first that is torn or damaged: they are for people, the journal stays the truth."""
    rows: list[Mapping[str, Any]] = []
    with storing(path, "read"):
        lines = path.read_bytes().splitlines() if path.exists() else []
    for line in lines:
        try:
            row = json.loads(line)
            if not row.keys() >= _FIELDS[row["event"]]:
                break
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            break
        rows.append(row)
    return rows


def _approximation(report: StepReport) -> dict[str, Any]:
    """What a step took from approximations, and how near it found them to be, where it measured."""
    observed, fidelity = report.observed, Fidelity.measured([report])
    fields: dict[str, Any] = {}
    if (accepted := observed.prefix.hit_rate) is not None:
        fields["accepted_hit_rate"] = accepted
    if observed.prefix.errors:
        fields["reflection_errors"] = list(observed.prefix.errors)
    if observed.prefix.carried is not None:
        fields["carried_error"] = observed.prefix.carried
    if fidelity is not None:
        fields["fidelity"] = asdict(fidelity)
    if observed.ladder:
        fields["trial"] = {"ladder": [list(point) for point in observed.ladder], "base": observed.base}
    return fields


def _cut(path: Path, draws: int, evaluations: int) -> None:
    """Keep what the journal knows of: the first ``draws`` steps and ``evaluations`` evaluations, in order."""
    kept: list[Mapping[str, Any]] = []
    left = {"step": draws, "evaluation": evaluations}
    for row in read_metrics(path):
        if left.get(row["event"], 1) <= 0:
            break
        if row["event"] in left:
            left[row["event"]] -= 1
        kept.append(row)
    write_text(path, _lines(kept))


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
