"""Read rows from JSON lines or CSV; every fault names file and row."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from twinpass.errors import DataError


@dataclass(frozen=True, slots=True)
class Row:
    """Named fields, and ``place`` ("reviews.jsonl, row 7") for messages."""

    fields: dict[str, Any]
    place: str


def read_rows(path: Path, limit: int | None = None) -> list[Row]:
    """The first ``limit`` rows of a ``.jsonl`` or ``.csv`` file (all of them without a limit).

    Raises:
        DataError: the file is missing, empty or of another kind, or a row cannot be read.
    """
    readers = {".jsonl": _jsonl, ".csv": _csv}
    if path.suffix not in readers:
        raise DataError(f"{path}: expected a file ending in {' or '.join(readers)}; convert it, one example a row")
    try:
        if not path.is_file():
            raise DataError(
                f"{path}: there is no such file; paths in a configuration are relative to the configuration file"
            )
        rows = list(islice(readers[path.suffix](path), limit))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; give a file that can be opened") from error
    if not rows:
        raise DataError(f"{path}: the file holds no rows")
    if limit is not None and len(rows) < limit:
        raise DataError(f"{path}: the configuration asks for {limit} rows, the file holds {len(rows)}")
    return rows


def _jsonl(path: Path) -> Iterator[Row]:
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _json_row(path, number, line)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, after row {number}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


def _json_row(path: Path, number: int, line: str) -> Row:
    place = f"{path}, row {number}"
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{place}: not valid JSON ({error.msg} at column {error.colno}); write one object a line"
        ) from error
    except RecursionError as error:
        raise DataError(f"{place}: nested too deep to be read; write one flat object a line") from error
    except ValueError as error:
        raise DataError(f"{place}: a number has too many digits; write it as a text, in quotes") from error
    if not isinstance(fields, dict):
        raise DataError(f'{place}: expected an object such as {{"text": "...", "label": 0}}, got {line.strip()[:40]}')
    return Row(fields, place)


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # as much as a C long holds anywhere; the default is 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            _require_distinct(path, reader.fieldnames or ())
            for number, fields in enumerate(reader, 1):
                if None in fields or None in fields.values():
                    raise DataError(
                        f"{path}, row {number}: the header names {len(reader.fieldnames or ())} columns, the row differs"
                    )
                yield Row(dict(fields), f"{path}, row {number}")
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}, line {reader.line_num + 1}: {error}") from error


def _require_distinct(path: Path, columns: Sequence[str]) -> None:
    for i, column in enumerate(columns):
        if column in columns[:i]:
            raise DataError(f"{path}: the header names the column {column!r} twice; rename or remove one of them")
