"""A run is its list of updates: an append-only journal of JSON lines, chained by checksums.

``theta_t = theta_0 - sum_i lr_i g_i z_i``, so (seeds, eps, losses, gradients, lr) of every step rebuild the weights.
Each line ends in ``check``, a hash of the line and of the check before it: an altered, lost or swapped line shows.
A line is on the disk before the update it describes is made, so a crash at any point loses nothing.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from twinpass.errors import JournalError, StorageError
from twinpass.report.files import storing, sync_folder

FORMAT = 1

UNBEGUN = "the run ended before its header was written, so that nothing is lost; start it again as you started it first"

INSTEAD = "continue it with 'twinpass train --resume {folder}', or choose another with --set run.out=FOLDER"
"""What to do where a run is to begin and there is one."""


@dataclass(frozen=True, slots=True)
class Contents:
    """A journal read back: its header, its records, and how many bytes of the file are sound."""

    header: Mapping[str, Any]
    records: tuple[Mapping[str, Any], ...]
    sound_bytes: int
    check: str


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


def require_new(folder: Path, instead: str = INSTEAD) -> None:
    """Refuse a folder that holds a run, and say what to do ``instead``.

    Raises:
        JournalError: it does.
    """
    journal = folder / "journal.jsonl"
    if journal.exists() and not unbegun(journal):
        raise JournalError(f"{folder} already holds a run: {instead.format(folder=folder)}")


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
