"""JSON lines: an object a line."""

import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from twinpass.errors import DataError
from twinpass.task.rows import Item, Row

STDIN = "-"


def read_file(path: Path) -> Iterator[Item]:
    """The rows of a file."""
    with path.open(encoding="utf-8-sig") as lines:
        yield from read_lines(lines, str(path))


def read_standard_input() -> Iterator[Item]:
    """The rows that are piped in."""
    lines = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig")
    try:
        yield from read_lines(lines, "standard input")
    finally:
        lines.detach()


def read_lines(lines: Iterable[str], name: str) -> Iterator[Item]:
    """The rows of lines; blank ones count, and hold none."""
    number = 0
    try:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield row_of(line, f"{name}, row {number}")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}, after row {number}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


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
