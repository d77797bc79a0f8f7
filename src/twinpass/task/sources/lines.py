"""JSON lines: an object a line."""

import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from twinpass.errors import DataError
from twinpass.task.rows import Item, Row

STDIN = "-"
STANDARD_INPUT = "standard input"


def read_file(path: Path) -> Iterator[Item]:
    """The rows of a file."""
    with path.open(encoding="utf-8-sig") as lines:
        yield from read_lines(lines, str(path))


def read_standard_input() -> Iterator[Item]:
    """The rows that are piped in."""
    lines = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig")
    try:
        yield from read_lines(lines, STANDARD_INPUT)
    finally:
        lines.detach()


def beginning_of_standard_input(limit: int) -> tuple[Row, ...]:
    """The first ``limit`` rows that are piped in, which are read again with the others."""
    if not isinstance(sys.stdin, io.TextIOWrapper):
        return ()
    source, read = sys.stdin.detach(), bytearray()
    found: list[Row] = []
    try:
        while len(found) < limit and (line := source.readline()):
            read += line
            items = read_lines([line.decode("utf-8-sig", "replace")], STANDARD_INPUT)
            found += [item for item in items if isinstance(item, Row)]
    finally:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(_Again(bytes(read), source)))
    return tuple(found)


class _Again(io.RawIOBase):
    """Bytes that were read already, and the rest."""

    def __init__(self, read: bytes, rest: BinaryIO) -> None:
        self._read, self._rest = io.BytesIO(read), rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._read.read(len(buffer)) or self._rest.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)


def read_lines(lines: Iterable[str], name: str) -> Iterator[Item]:
    """The rows of lines; blank ones count, and hold none."""
    number = 0
    try:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield row_of(line, f"{name}, row {number}")
    except UnicodeDecodeError as error:
        raise not_utf8(error, f"{name}, after row {number}") from error


def row_of(text: str, place: str) -> Item:
    """The row that a JSON object is."""
    try:
        return row(parsed(text, place), place)
    except DataError as error:
        return error


def row(value: object, place: str) -> Item:
    """The same of an object that was read already."""
    if isinstance(value, dict):
        return Row(value, place)
    shown = json.dumps(value)[:40]
    return DataError(f'{place}: expected an object such as {{"text": "...", "label": 0}}, got {shown}')


def parsed(text: str, place: str) -> Any:
    """What JSON says.

    Raises:
        DataError: it is none.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise not_json(error, place) from error
    except RecursionError as error:
        raise DataError(f"{place}: nested too deep to be read; write one flat object a line") from error
    except ValueError as error:
        raise DataError(f"{place}: a number has too many digits; write it as a text, in quotes") from error


def not_json(error: json.JSONDecodeError, place: str) -> DataError:
    """What is wrong where."""
    return DataError(f"{place}: not valid JSON ({error.msg} at column {error.colno}); write one object a line")


def not_utf8(error: UnicodeDecodeError, place: str) -> DataError:
    """The same of bytes that are no text."""
    return DataError(f"{place}: not UTF-8 ({error.reason}); save the file as UTF-8")
