"""What lies in the run folders of a directory."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from twinpass.report.metrics import read_metrics

State = Literal["finished", "unfinished", "unreadable"]


@dataclass(frozen=True)
class RunEntry:
    """A run: how far it came, its last held-out metric, and the seconds that its steps and evaluations took."""

    run: str
    state: State
    steps: int | None = None
    of: int | None = None
    metric_name: str | None = None
    metric: float | None = None
    seconds: float | None = None


def runs_in(folder: Path) -> list[RunEntry]:
    """The runs in ``folder`` and the folders below it, or the one that it is, in the order of their names."""
    return [_entry(path.parent) for path in sorted(folder.rglob("journal.jsonl"))]


def _entry(run: Path) -> RunEntry:
    """A run, from its metrics: they are for people, and may lag behind the journal by a step."""
    try:
        config = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
        finished = (run / "summary.json").is_file()
        rows = read_metrics(run / "metrics.jsonl")
        last: Mapping[str, Any] = next((row for row in reversed(rows) if row["event"] == "evaluation"), {})
        metric: Mapping[str, Any] = {**last, **(_final(run) if finished else {})}
        return RunEntry(
            str(run),
            "finished" if finished else "unfinished",
            _steps(rows),
            config.get("optimizer", {}).get("steps"),
            metric.get("metric_name"),
            metric.get("metric"),
            sum(row.get("seconds", 0.0) for row in rows),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return RunEntry(str(run), "unreadable")


def _final(run: Path) -> Mapping[str, Any]:
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    value = summary.get("kept_metric", summary["final_metric"])
    return {} if value is None else {"metric_name": summary["metric_name"], "metric": value}


def _steps(rows: list[Mapping[str, Any]]) -> int:
    """Steps in force after the last line."""
    for row in reversed(rows):
        if row["event"] == "step":
            return int(row["step"]) + 1
        if row["event"] == "rollback":
            return int(row["to"])
    return 0
