"""A journal that was damaged, mixed up or is none says at which line, and what to do."""

import random
from contextlib import closing
from pathlib import Path
from typing import Any

import journals
import pytest
from journals import RECORDS, plain, write

from twinpass.errors import JournalError
from twinpass.train.journal import Journal, read

path = journals.path


def test_a_damaged_byte_anywhere_is_noticed(path: Path) -> None:
    """Except for the last line break: without it the last line counts as torn."""
    lines = write(path)
    chance = random.Random(0)
    for number, line in enumerate(lines, 1):
        for at in range(len(line) - (number == len(lines))):
            bad = bytearray(line)
            bad[at] ^= chance.randrange(1, 256)
            path.write_bytes(b"".join([*lines[: number - 1], bytes(bad), *lines[number:]]))
            with pytest.raises(JournalError, match=rf"journal\.jsonl, line {number}: the checksum does not match"):
                read(path)


def test_a_damaged_last_line_is_named_and_left_in_the_file(path: Path) -> None:
    lines = write(path)
    damaged = b"".join(lines[:-1]) + lines[-1].replace(b'"step":1', b'"step":2')
    path.write_bytes(damaged)
    for opener in (read, Journal.open):
        with pytest.raises(JournalError, match=r"line 6: .*restore the file from a backup, or keep its first 5 lines"):
            opener(path)
    assert path.read_bytes() == damaged


def swapped(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[3], lines[2], *lines[4:]]


def removed(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], *lines[3:]]


def repeated(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[1], *lines[2:]]


def edited(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[2].replace(b'"metric":0.75', b'"metric":0.76'), *lines[3:]]


def blank(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], b"\n", *lines[2:]]


@pytest.mark.parametrize("change", [swapped, removed, repeated, edited, blank])
def test_lines_that_were_moved_or_changed_are_named_with_a_remedy(path: Path, change: Any) -> None:
    lines = write(path, [RECORDS[0], RECORDS[1], *RECORDS[2:]])
    damaged = b"".join(change(lines))
    assert damaged != b"".join(lines)
    path.write_bytes(damaged)
    with pytest.raises(JournalError, match=r"line 3: .*restore the file from a backup, or keep its first 2 lines"):
        read(path)
    with pytest.raises(JournalError, match="line 3"):
        Journal.open(path)
    assert path.read_bytes() == damaged

    path.write_bytes(b"".join(damaged.splitlines(keepends=True)[:2]))  # the remedy
    assert plain(read(path).records) == RECORDS[:1]


def test_a_removed_header_is_noticed(path: Path) -> None:
    path.write_bytes(b"".join(write(path)[1:]))
    with pytest.raises(JournalError, match="line 1"):
        read(path)


def test_lines_of_another_run_do_not_fit(path: Path, tmp_path: Path) -> None:
    lines = write(path)
    with closing(Journal.create(tmp_path / "other", {"config": {}})) as journal:
        for record in RECORDS:
            journal.append(record)
    other = (tmp_path / "other").read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], *other[2:]]))
    with pytest.raises(JournalError, match="line 3"):
        read(path)


def test_another_format_is_refused(path: Path) -> None:
    with closing(Journal.create(path, {"format": 99})):
        pass
    with pytest.raises(JournalError, match="written in format 99, this version reads 1; use the version that wrote it"):
        read(path)


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"hello\n", b"hello", b'{"kind":"header"}\n', b"\x00\xff" * 50, b"{}\n{}\n"]
)
def test_a_file_that_is_no_journal_is_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for opener in (read, Journal.open):
        with pytest.raises(JournalError, match=r"journal\.jsonl"):
            opener(path)
    assert path.read_bytes() == data


def test_an_empty_file_says_so(path: Path) -> None:
    path.touch()
    with pytest.raises(
        JournalError, match="ended before its header was written, so that nothing is lost; start it again"
    ):
        read(path)


def test_a_journal_that_begins_with_a_step_is_refused(path: Path) -> None:
    with closing(Journal(path, "")) as journal:
        journal.append(RECORDS[0])
    with pytest.raises(JournalError, match="does not begin with a header"):
        read(path)


def test_a_missing_journal_is_reported(tmp_path: Path) -> None:
    for place in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(JournalError, match="there is no journal here; give the folder of a run"):
            read(place)
