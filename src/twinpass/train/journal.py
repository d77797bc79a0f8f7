"""A run is its list of updates: an append-only journal of JSON lines, chained by checksums.

``theta_t = theta_0 - sum_i lr_i g_i z_i``, so (seeds, eps, losses, gradients, lr) of every step rebuild the weights.
Each line ends in ``check``, a hash of the line and of the check before it: an altered, lost or swapped line shows.
A line is on the disk before the update it describes is made, so a crash at any point loses nothing.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from twinpass.core import Estimate, Observation, PrefixReport, Probe, StepReport, Term
from twinpass.errors import JournalError

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Contents:
    """A journal read back: its header, its records, and how many bytes of the file are sound."""

    header: Mapping[str, Any]
    records: tuple[Mapping[str, Any], ...]
    sound_bytes: int
    check: str


@dataclass(frozen=True, slots=True)
class Event:
    """Batch number ``draw`` was scored, the held-out rows were, or the weights went back; after ``step`` steps."""

    kind: Literal["draw", "evaluation", "rollback"]
    step: int
    draw: int = 0


@dataclass(slots=True)
class History:
    """What the records add up to: the steps still in force after rollbacks, and the state derived from them.

    ``draws`` counts all steps ever taken, rolled back or not: each has batches and seeds of its own. ``events`` lists
    all that happened, in order. ``snapshots`` are hashes of what was stored, by step.
    """

    steps: list[StepReport] = field(default_factory=list)
    evaluations: dict[int, float] = field(default_factory=dict)
    draws: int = 0
    events: list[Event] = field(default_factory=list)
    rollbacks: int = 0
    lr_scale: float = 1.0
    snapshots: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> Self:
        """Fold a journal's records."""
        history = cls()
        for record in records:
            history.fold(record)
        return history

    def fold(self, record: Mapping[str, Any]) -> None:
        """Take in one more record."""
        if record["kind"] == "step":
            self.steps.append(_report(record))
            self.events.append(Event("draw", record["step"], self.draws))
            self.draws += 1
        elif record["kind"] == "evaluation":
            self.evaluations[record["step"]] = record["metric"]
            self.events.append(Event("evaluation", record["step"]))
        elif record["kind"] == "snapshot":
            self.snapshots[record["step"]] = record["hash"]
        else:
            self.rollbacks += 1
            if record["discarded"]:
                self.events.append(Event("draw", len(self.steps), self.draws))
            self.events.append(Event("rollback", record["to"]))
            self.draws += record["discarded"]
            self.lr_scale = record["lr_scale"]
            del self.steps[record["to"] :]
            self.evaluations = {step: value for step, value in self.evaluations.items() if step <= record["to"]}
            self.snapshots = {step: value for step, value in self.snapshots.items() if step <= record["to"]}

    @property
    def carried_from(self) -> int:
        """The step whose base-lane prefix was computed and has been carried since; the number of steps if there is none."""
        done = len(self.steps)
        moves = [event.kind for event in self.events if event.kind != "evaluation"]
        if not done or moves[-1:] == ["rollback"]:
            return done
        age = self.steps[-1].observed.prefix.age
        return done if age is None else done - 1 - age

    def draw_of(self, step: int) -> int:
        """The number of the batch that a step in force was made with."""
        return next(event.draw for event in reversed(self.events) if event.kind == "draw" and event.step == step)

    def terms(self, first: int = 0, last: int | None = None) -> list[Term]:
        """The updates of steps ``first`` to ``last`` - 1, in order.

        Raises:
            JournalError: they were made along whole gradients, and are no scalars.
        """
        if any(not step.estimate.probes for step in self.steps[first:last]):
            raise JournalError(
                'this run stepped along whole gradients ([estimator] kind = "backprop"), which are no list of scalars: '
                f"only its snapshots can be had without its rows, after steps {sorted(self.snapshots)}, in the folder snapshots"
            )
        return [term for step in self.steps[first:last] for term in step.terms]


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
        **({} if report.space is None else {"space": report.space}),
        **({} if report.observed == Observation() else {"observed": _without_empty(asdict(report.observed))}),
    }


def _report(record: Mapping[str, Any]) -> StepReport:
    estimate = Estimate(
        tuple(Probe(seed, record.get("block")) for seed in record["seeds"]),
        record["eps"],
        tuple((plus, minus) for plus, minus in record["losses"]),
        tuple(record["gradients"]),
    )
    observed = _observation(record["observed"]) if "observed" in record else Observation()
    return StepReport(
        record["step"], estimate, tuple(record["clipped"]), record["lr"], observed=observed, space=record.get("space")
    )


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


class Journal:
    """An open journal; use :meth:`create` or :meth:`open`."""

    def __init__(self, path: Path, check: str) -> None:
        self.path = path
        self._check = check
        self._file = path.open("ab")

    @classmethod
    def create(cls, path: Path, header: Mapping[str, Any]) -> Self:
        """Begin a journal with its header.

        Raises:
            JournalError: there is one already.
        """
        if path.exists():
            raise JournalError(f"{path} already holds a run; resume it, or choose another folder with run.out")
        journal = cls(path, "")
        journal.append({"kind": "header", "format": FORMAT, **header})
        return journal

    @classmethod
    def open(cls, path: Path) -> tuple[Self, Contents]:
        """Continue a journal: a torn last line is cut off first."""
        contents = read(path)
        if contents.sound_bytes < path.stat().st_size:
            with path.open("r+b") as file:
                file.truncate(contents.sound_bytes)
        return cls(path, contents.check), contents

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record and wait until it is on the disk."""
        body = json.dumps(record, allow_nan=False, separators=(",", ":"))
        self._check = _chain(self._check, body)
        self._file.write(f'{body[:-1]},"check":"{self._check}"}}\n'.encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(path: Path) -> Contents:
    """Read and verify a journal. A torn last line is left out: its step simply runs again.

    Raises:
        JournalError: there is no journal, its format is unknown, or a whole line is damaged.
    """
    if not path.is_file():
        raise JournalError(f"{path}: there is no journal here; give the folder of a run")
    lines = path.read_bytes().splitlines(keepends=True)
    records: list[Mapping[str, Any]] = []
    check, sound = "", 0
    for number, line in enumerate(lines, 1):
        record, new = _parse(line, check)
        if record is None:
            if number == len(lines) and _torn(line):
                if records:
                    break
                raise JournalError(
                    f"{path}: the run ended before its header was written; delete the file and start again"
                )
            raise JournalError(
                f"{path}, line {number}: the checksum does not match, the line was damaged or changed; restore the file "
                f"from a backup, or keep its first {number - 1} lines and resume from there"
            )
        records.append(record)
        check, sound = new, sound + len(line)
    if not records or records[0].get("kind") != "header":
        raise JournalError(f"{path}: the file is empty or does not begin with a header; it is not a twinpass journal")
    if records[0]["format"] != FORMAT:
        raise JournalError(
            f"{path}: written in format {records[0]['format']}, this version reads {FORMAT}; use the version that wrote it"
        )
    return Contents(records[0], tuple(records[1:]), sound, check)


def _torn(line: bytes) -> bool:
    """Whether this is one record without its end: no line break, or no check before it."""
    checks = line.count(b'"check":"')
    ended = line.endswith(b"\n" if checks else b'"}\n')
    return checks <= 1 and not ended


def _parse(line: bytes, check: str) -> tuple[Mapping[str, Any] | None, str]:
    body, separator, tail = line.rstrip(b"\n").rpartition(b',"check":"')
    if not line.endswith(b'"}\n') or not separator:
        return None, check
    text = body.decode("utf-8", "replace") + "}"
    expected = _chain(check, text)
    if tail != f'{expected}"}}'.encode():
        return None, check
    record: Mapping[str, Any] = json.loads(text)
    return record, expected


def _chain(before: str, body: str) -> str:
    return hashlib.blake2b(f"{before}{body}".encode(), digest_size=8).hexdigest()
