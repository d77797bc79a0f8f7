"""Records of a journal."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from twinpass.core import Estimate, Probe, StepReport
from twinpass.train.journal import Journal
from twinpass.train.records import step_record

Record = dict[str, Any]


def report(step: int, seed: int = 7, loss: float = 1.0, lr: float = 1e-3) -> StepReport:
    estimate = Estimate((Probe(seed), Probe(2**64 - 1 - seed)), 1e-3, ((loss, 0.5), (0.25, loss)), (loss / 3, -0.1))
    return StepReport(step, estimate, (loss / 3, -0.05), lr)


def evaluation(step: int, metric: float) -> Record:
    return {"kind": "evaluation", "step": step, "metric": metric}


def rollback(to: int, lr_scale: float, discarded: int = 0) -> Record:
    return {"kind": "rollback", "to": to, "lr_scale": lr_scale, "discarded": discarded, "reason": "it “diverged”\n"}


HEADER: Record = {"config": {"run": {"out": "runs/ä"}}, "check": 'x","check":"'}
RECORDS: list[Record] = [
    step_record(report(0)),
    evaluation(1, 0.75),
    step_record(report(1, loss=0.1 + 0.2)),
    rollback(1, 0.5),
    step_record(report(1, seed=9)),
]


def write(path: Path, records: Sequence[Mapping[str, Any]] = RECORDS) -> list[bytes]:
    """A journal of ``records``; its lines."""
    with closing(Journal.create(path, HEADER)) as journal:
        for record in records:
            journal.append(record)
    return path.read_bytes().splitlines(keepends=True)


def plain(records: Sequence[Mapping[str, Any]]) -> list[Record]:
    return [dict(record) for record in records]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"
