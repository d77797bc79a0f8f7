"""What a line of the journal says of a step or an evaluation, and how a step is read back."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from twinpass.core import Estimate, Evaluation, Lesson, Observation, PrefixReport, Probe, StepReport


def step_record(report: StepReport) -> dict[str, Any]:
    """A step as a journal line: what decides the run's course, not what it took."""
    estimate = report.estimate
    return {
        "kind": "step",
        "step": report.step,
        "seeds": [probe.seed for probe in estimate.probes],
        "block": estimate.probes[0].block if estimate.probes else None,
        "eps": estimate.eps,
        "losses": [list(pair) for pair in estimate.losses],
        "gradients": list(estimate.gradients),
        "clipped": list(report.clipped),
        "lr": report.lr,
        **({"decay": report.decay} if report.decay else {}),
        **({} if report.space is None else {"space": report.space}),
        **({} if report.lesson is None else {"lesson": _without_empty(asdict(report.lesson))}),
        **({} if report.observed == Observation() else {"observed": _without_empty(asdict(report.observed))}),
    }


def evaluation_record(step: int, evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation after ``step`` steps as a journal line."""
    error = {} if evaluation.error is None else {"error": evaluation.error}
    return {
        "kind": "evaluation",
        "step": step,
        "metric": evaluation.metric,
        "loss": evaluation.loss,
        "rows": evaluation.examples,
        **error,
    }


def report_of(record: Mapping[str, Any]) -> StepReport:
    """The step that a line tells of.

    Raises:
        KeyError, TypeError or ValueError: it does not.
    """
    estimate = Estimate(
        tuple(Probe(seed, record.get("block")) for seed in record["seeds"]),
        record["eps"],
        tuple((plus, minus) for plus, minus in record["losses"]),
        tuple(record["gradients"]),
    )
    observed = _observation(record["observed"]) if "observed" in record else Observation()
    return StepReport(
        record["step"],
        estimate,
        tuple(record["clipped"]),
        record["lr"],
        observed=observed,
        space=record.get("space"),
        lesson=_lesson(record["lesson"]) if "lesson" in record else None,
        decay=record.get("decay", 0.0),
    )


def _lesson(record: Mapping[str, Any]) -> Lesson:
    known = tuple(map(tuple, record.get("reference", ())))
    return Lesson(tuple(map(tuple, record["texts"])), tuple(record["advantages"]), known)


def _without_empty(fields: Mapping[str, Any]) -> dict[str, Any]:
    short = {key: _without_empty(value) if isinstance(value, dict) else value for key, value in fields.items()}
    return {key: value for key, value in short.items() if value is not None and value not in ((), {})}


def _observation(record: Mapping[str, Any]) -> Observation:
    prefix: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in record.get("prefix", {}).items()
    }
    return Observation(
        PrefixReport(**prefix),
        tuple(record.get("approximate", ())),
        tuple(record.get("exact", ())),
        tuple((eps, plus, minus) for eps, plus, minus in record.get("ladder", ())),
        record.get("base"),
        record.get("norm"),
    )
