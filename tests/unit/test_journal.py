"""The journal gives back what was written; a torn last line is no damage."""

import json
import resource
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import journals
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journals import HEADER, RECORDS, evaluation, plain, report, write

from twinpass.core import Estimate, Observation, PrefixReport, Probe, StepReport
from twinpass.errors import JournalError, StorageError
from twinpass.train.history import History
from twinpass.train.journal import Journal, read, unbegun
from twinpass.train.records import step_record

path = journals.path


def test_what_was_written_is_read_back(path: Path) -> None:
    lines = write(path)
    contents = read(path)
    assert dict(contents.header) == {"kind": "header", "format": 1, **HEADER}
    assert plain(contents.records) == RECORDS
    assert contents.sound_bytes == path.stat().st_size
    assert len(lines) == 1 + len(RECORDS)
    for line in lines:
        assert json.loads(line)["check"]


def test_a_record_is_in_the_file_as_soon_as_append_returns(path: Path) -> None:
    with closing(Journal.create(path, HEADER)) as journal:
        for count, record in enumerate(RECORDS, 1):
            journal.append(record)
            assert plain(read(path).records) == RECORDS[:count]


finite = st.floats(allow_nan=False, allow_infinity=False)
seeds = st.integers(0, 2**64 - 1)
floats = st.lists(finite, max_size=3).map(tuple)
prefixes = st.builds(
    PrefixReport,
    accepted=st.integers(0, 10**6),
    rejected=st.integers(0, 10**6),
    errors=floats,
    drift=floats,
    age=st.none() | st.integers(0, 100),
    carried=st.none() | finite,
)
observations = st.builds(
    Observation,
    prefix=prefixes,
    approximate=floats,
    exact=floats,
    ladder=st.lists(st.tuples(finite, finite, finite), max_size=3).map(tuple),
    base=st.none() | finite,
)


@st.composite
def reports(draw: st.DrawFn) -> StepReport:
    """A step whatever its number."""
    q = draw(st.integers(1, 3))
    estimate = Estimate(
        tuple(Probe(draw(seeds)) for _ in range(q)),
        draw(finite),
        tuple((draw(finite), draw(finite)) for _ in range(q)),
        tuple(draw(finite) for _ in range(q)),
    )
    clipped = tuple(draw(finite) for _ in range(q))
    observed = draw(st.just(Observation()) | observations)
    return StepReport(0, estimate, clipped, draw(finite), observed=observed)


def test_a_step_that_observed_nothing_is_as_short_as_before() -> None:
    assert "observed" not in step_record(report(0))
    seen = replace(report(0), observed=Observation(PrefixReport(age=0)))
    assert step_record(seen)["observed"] == {"prefix": {"accepted": 0, "rejected": 0, "age": 0}}


@settings(deadline=None, max_examples=40)
@given(st.lists(reports(), max_size=3))
def test_steps_come_back_to_the_bit(tmp_path_factory: pytest.TempPathFactory, steps: list[StepReport]) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    steps = [replace(report, step=step) for step, report in enumerate(steps)]
    write(path, [step_record(step) for step in steps])
    history = History.of(read(path).records)
    assert history.steps == steps
    assert repr(history.steps) == repr(steps)  # tells -0.0 from 0.0
    assert repr(history.terms()) == repr([term for step in steps for term in step.terms])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_refused_and_leaves_the_journal_sound(path: Path, value: float) -> None:
    with closing(Journal.create(path, HEADER)) as journal:
        with pytest.raises(ValueError, match="not JSON compliant"):
            journal.append(evaluation(0, value))
        journal.append(RECORDS[0])
    assert plain(read(path).records) == RECORDS[:1]


def test_a_last_line_torn_at_any_byte_is_dropped_and_appending_continues(path: Path) -> None:
    lines = write(path)
    whole, kept = path.read_bytes(), len(b"".join(lines[:-1]))
    for size in range(kept, len(whole)):
        path.write_bytes(whole[:size])
        contents = read(path)
        assert (plain(contents.records), contents.sound_bytes) == (RECORDS[:-1], kept)
        assert path.stat().st_size == size, "reading must not write"

        journal, contents = Journal.open(path)
        with closing(journal):
            assert plain(contents.records) == RECORDS[:-1]
            journal.append(RECORDS[-1])
        assert path.read_bytes() == whole


def test_a_file_cut_at_any_byte_holds_its_whole_lines(path: Path) -> None:
    lines = write(path)
    whole = b"".join(lines)
    ends = [len(b"".join(lines[: count + 1])) for count in range(len(lines))]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        if size < ends[0]:
            with pytest.raises(JournalError, match=r"journal\.jsonl"):
                read(path)
        else:
            assert plain(read(path).records) == RECORDS[: sum(end <= size for end in ends) - 1]


def test_a_sound_journal_is_continued_to_the_same_bytes(path: Path, tmp_path: Path) -> None:
    lines = write(path)
    other = tmp_path / "other.jsonl"
    write(other, RECORDS[:2])
    for record in RECORDS[2:]:
        journal, _ = Journal.open(other)
        with closing(journal):
            journal.append(record)
    assert other.read_bytes() == b"".join(lines)


@pytest.mark.parametrize("rest", [b"", b"\n", b"\0" * 50])
def test_a_last_record_that_was_cut_off_is_dropped_whatever_follows(path: Path, rest: bytes) -> None:
    lines = write(path)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:40] + rest)
    assert plain(read(path).records) == RECORDS[:-1]


@pytest.mark.parametrize("data", [b"", b"anything"])
def test_create_refuses_a_file_that_exists(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(JournalError, match="already holds a run; resume it, or choose another folder"):
        Journal.create(path, HEADER)
    assert path.read_bytes() == data


# --- the file under it


def test_a_journal_whose_file_is_taken_away_is_an_error(path: Path) -> None:
    with closing(Journal.create(path, HEADER)) as journal:
        journal.append(RECORDS[0])
        path.rename(path.with_suffix(".moved"))
        with pytest.raises(StorageError, match="was removed or replaced while the run went on"):
            journal.append(RECORDS[1])
        path.write_text("another")
        with pytest.raises(StorageError, match="was removed or replaced"):
            journal.require_there()


def test_a_write_that_fails_half_way_leaves_a_torn_line_that_resume_cuts_off(path: Path) -> None:
    """As on a disk that is full: a limit on the size of files."""
    lines = write(path, RECORDS[:1])
    whole = path.read_bytes()
    journal, _ = Journal.open(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 30, before[1]))
    try:
        with pytest.raises(StorageError, match=r"journal\.jsonl cannot be written: File too large; raise the limit"):
            journal.append(RECORDS[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        journal.close()
    assert len(path.read_bytes()) == len(whole) + 30
    journal, contents = Journal.open(path)
    with closing(journal):
        assert len(contents.records) == 1
        journal.append(RECORDS[1])
    assert path.read_bytes() == b"".join(lines) + path.read_bytes().splitlines(keepends=True)[-1]
    assert plain(read(path).records) == RECORDS[:2]


@pytest.mark.parametrize("left", [b"", b'{"kind"', b'{"kind":"header","format":1,"base":"a'])
def test_what_a_crash_leaves_of_a_header_is_no_run(path: Path, left: bytes) -> None:
    path.write_bytes(left)
    assert unbegun(path)
    with pytest.raises(JournalError, match="ended before its header was written"):
        read(path)


@pytest.mark.parametrize("data", [b"x", b'{"kind":"heather"', b'{"kind":"header"}\n'])
def test_what_is_something_else_is_left_alone(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    assert not unbegun(path)
