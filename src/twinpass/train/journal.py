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

from twinpass.core import Estimate, Evaluation, Lesson, Observation, PrefixReport, Probe, StepReport, Term
from twinpass.errors import JournalError, StorageError
from twinpass.report.files import storing, sync_folder
from twinpass.steps import Steps
from twinpass.train.windows import Windows

FORMAT = 1

Keep = Literal["best", "last"]
"""Which weights a run leaves."""

UNBEGUN = "the run ended before its header was written, so that nothing is lost; start it again as you started it first"


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


@dataclass(frozen=True, slots=True)
class Sample:
    """What an evaluation says of itself beside its metric: its loss, its rows, and the standard error of the metric (None: one row has none)."""

    loss: float
    rows: int
    error: float | None = None


@dataclass(frozen=True, slots=True)
class Extremes:
    """Steps of evaluations: of the best metric (the earliest of equal ones), of the lowest loss (-1: not known), and of the last."""

    best: int
    lowest: int
    last: int


@dataclass(slots=True)
class History:
    """What the records add up to: the steps still in force after rollbacks, and the state derived from them.

    ``draws`` counts all steps ever taken, rolled back or not: each has batches and seeds of its own. ``events`` lists
    all that happened, in order. ``evaluations`` holds metrics by step, ``samples`` what else is known of them, where it is.
    ``snapshots`` are hashes of what was stored, by step.
    ``changed`` is the ground that the run went on from, where that was accepted to be another than it began on.
    """

    steps: Steps = field(default_factory=Steps)
    evaluations: dict[int, float] = field(default_factory=dict)
    draws: int = 0
    events: list[Event] = field(default_factory=list)
    rollbacks: int = 0
    lr_scale: float = 1.0
    snapshots: dict[int, str] = field(default_factory=dict)
    samples: dict[int, Sample] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    _windows: dict[int, Windows] = field(default_factory=dict, compare=False, repr=False)
    _extremes: Extremes | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> Self:
        """Fold a journal's records.

        Raises:
            JournalError: one of them cannot follow those before it.
        """
        history = cls()
        for number, record in enumerate(records, 2):
            try:
                history.fold(record)
            except (KeyError, TypeError, ValueError, AttributeError, LookupError) as error:
                raise JournalError(
                    f"the journal's line {number} is sound, but says nothing that can follow the lines before it "
                    f"({type(error).__name__}: {error}); use the version of twinpass that wrote it"
                ) from error
        return history

    def fold(self, record: Mapping[str, Any]) -> None:
        """Take in one more record.

        Raises:
            ValueError, KeyError or TypeError: it cannot follow those before it.
        """
        match record["kind"]:
            case "step":
                self._step(record)
            case "evaluation":
                self._evaluation(record)
            case "rollback":
                self._rollback(record)
            case "snapshot":
                self.snapshots[record["step"]] = record["hash"]
            case "changes":
                self.changed |= record["ground"]
            case kind:
                raise ValueError(f"there is no record of kind {kind!r}")

    def _step(self, record: Mapping[str, Any]) -> None:
        report = _report(record)
        if record["step"] != len(self.steps):
            raise ValueError(f"step {record['step']} after {len(self.steps)} steps")
        self.steps.append(report)
        self.events.append(Event("draw", record["step"], self.draws))
        self.draws += 1

    def _evaluation(self, record: Mapping[str, Any]) -> None:
        step = record["step"]
        self.evaluations[step] = record["metric"]
        self.samples.pop(step, None)
        if "loss" in record:
            self.samples[step] = Sample(record["loss"], record["rows"], record.get("error"))
        self.events.append(Event("evaluation", step))
        self._extremes = None

    def _rollback(self, record: Mapping[str, Any]) -> None:
        to = record["to"]
        if to < 0 or record["discarded"] not in (0, 1):
            raise ValueError(f"a rollback to step {to} with {record['discarded']} draws")
        self.rollbacks += 1
        if record["discarded"]:
            self.events.append(Event("draw", len(self.steps), self.draws))
        self.events.append(Event("rollback", to))
        self.draws += record["discarded"]
        self.lr_scale = record["lr_scale"]
        self.steps.cut(to)
        self.evaluations = {step: value for step, value in self.evaluations.items() if step <= to}
        self.samples = {step: sample for step, sample in self.samples.items() if step <= to}
        self.snapshots = {step: value for step, value in self.snapshots.items() if step <= to}
        for windows in self._windows.values():
            windows.cut(to)
        self._extremes = None

    def windows(self, size: int) -> Windows:
        """Mean losses of ``size`` steps in a row, up to the last; what that costs does not grow with the run."""
        windows = self._windows.setdefault(size, Windows(size))
        windows.extend(self.steps)
        return windows

    @property
    def extremes(self) -> Extremes:
        """Of the evaluations in force; there has to be one."""
        if self._extremes is None:
            best = max(self.evaluations, key=lambda step: self.evaluations[step])
            lowest = min(self.samples, key=lambda step: self.samples[step].loss, default=-1)
            self._extremes = Extremes(best, lowest, max(self.evaluations))
        return self._extremes

    def settled(self, patience: int) -> bool:
        """Whether the last ``patience`` evaluations (0: never) came to no more than one before them."""
        if not patience or len(self.evaluations) <= patience:
            return False
        values = [self.evaluations[step] for step in sorted(self.evaluations)]
        return max(values[-patience:]) <= max(values[:-patience])

    def kept(self, keep: Keep) -> int:
        """The step whose weights a run that ends now leaves: its last, or that of its best evaluation; the later of equal ones."""
        if keep == "last" or not self.evaluations:
            return len(self.steps)
        return max(self.evaluations, key=lambda step: (self.evaluations[step], step))

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
        **({} if report.lesson is None else {"lesson": asdict(report.lesson)}),
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


def _report(record: Mapping[str, Any]) -> StepReport:
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
    )


def _lesson(record: Mapping[str, Any]) -> Lesson:
    return Lesson(tuple(map(tuple, record["texts"])), tuple(record["advantages"]))


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
    """An open journal; use :meth:`create` or :meth:`open`. One process at a time may have it (:mod:`twinpass.train.lock`)."""

    def __init__(self, path: Path, check: str) -> None:
        self.path = path
        self._check = check
        with storing(path):
            self._file = path.open("ab", buffering=0)

    @classmethod
    def create(cls, path: Path, header: Mapping[str, Any]) -> Self:
        """Begin a journal with its header; file and name are on the disk when this returns.

        Raises:
            JournalError: there is one already.
            StorageError: it cannot be written.
        """
        try:
            with storing(path):
                path.open("xb").close()
        except StorageError as error:
            if not isinstance(error.__cause__, FileExistsError):
                raise
            raise JournalError(
                f"{path} already holds a run; resume it, or choose another folder with run.out"
            ) from error
        journal = cls(path, "")
        journal.append({"kind": "header", "format": FORMAT, **header})
        with storing(path):
            sync_folder(path.parent)
        return journal

    @classmethod
    def open(cls, path: Path) -> tuple[Self, Contents]:
        """Continue a journal: a torn last line is cut off first."""
        contents = read(path)
        with storing(path):
            if contents.sound_bytes < path.stat().st_size:
                with path.open("r+b") as file:
                    file.truncate(contents.sound_bytes)
        return cls(path, contents.check), contents

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record and wait until it is on the disk.

        Raises:
            StorageError: it cannot be written, or others have taken the file away.
        """
        body = json.dumps(record, allow_nan=False, separators=(",", ":"))
        check = _chain(self._check, body)
        left = memoryview(f'{body[:-1]},"check":"{check}"}}\n'.encode())
        with storing(self.path):
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        self.require_there()
        self._check = check

    def require_there(self) -> None:
        """Refuse to go on once the file is no longer what its name leads to.

        Raises:
            StorageError: the run folder was removed, moved or replaced.
        """
        try:
            there = os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except OSError:
            there = False
        if not there:
            raise StorageError(
                f"{self.path} was removed or replaced while the run went on; what it held is lost unless you moved it: "
                "put it back, or start again"
            )

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(path: Path) -> Contents:
    """Read and verify a journal. A torn last line is left out: its step simply runs again.

    Raises:
        JournalError: there is no journal, its format is unknown, or a whole line is damaged.
    """
    with storing(path, "read"):
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
                raise JournalError(f"{path}: {UNBEGUN}")
            raise JournalError(
                f"{path}, line {number}: the checksum does not match, the line was damaged or changed; restore the file "
                f"from a backup, or keep its first {number - 1} lines and resume from there"
            )
        records.append(record)
        check, sound = new, sound + len(line)
    if not lines:
        raise JournalError(f"{path}: {UNBEGUN}")
    if records[0].get("kind") != "header":
        raise JournalError(f"{path}: the file is empty or does not begin with a header; it is not a twinpass journal")
    if records[0]["format"] != FORMAT:
        raise JournalError(
            f"{path}: written in format {records[0]['format']}, this version reads {FORMAT}; use the version that wrote it"
        )
    return Contents(records[0], tuple(records[1:]), sound, check)


def unbegun(path: Path) -> bool:
    """Whether a file is what a crash leaves of a journal whose header was not written: nothing, or a part of it."""
    start = b'{"kind":"header"'
    with storing(path, "read"):
        data = path.read_bytes()
    return b"\n" not in data and data[: len(start)] == start[: len(data)]


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
