"""A file of predictions, a line a row, that is continued where it ends."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from twinpass.errors import DataError
from twinpass.report.checksums import checksum, checksums
from twinpass.report.files import storing
from twinpass.report.plain import dumped
from twinpass.task.rows import Row

ADDED = ("weights", "prediction")
"""What a line says beside the fields of its row."""


def digest_of(weights: Path) -> str:
    """Names what was trained: a hash of the files with its tensors, by the hashes that were written with them and that they were held to."""
    found, known = hashlib.sha256(), checksums(weights) or {}
    for path in sorted(weights.glob("*.safetensors")):
        found.update(bytes.fromhex(known.get(path.name) or checksum(path)))
    return found.hexdigest()[:16]


def require_room(rows: Sequence[Row]) -> None:
    """Refuse rows with fields that stand for what is added to them.

    Raises:
        DataError: naming the first.
    """
    for row in rows:
        if taken := [name for name in ADDED if name in row.fields]:
            raise DataError(
                f"{row.place}: the field {taken[0]} is where this prediction's own would be written; rename it, or leave it out"
            )


def line_of(row: Row, weights: str, prediction: Mapping[str, Any]) -> str:
    """A row's fields, what made the prediction, and the prediction.

    What JSON has no form for, such as a date out of a Parquet file, is written as :func:`~twinpass.report.plain.plain` has it; half a
    character as its escape.
    """
    values = {**row.fields, "weights": weights, "prediction": prediction}
    return encodable(dumped(values, ensure_ascii=False) + "\n", "utf-8")


def encodable(line: str, encoding: str) -> str:
    """A line of JSON with escapes for what the encoding does not have."""
    try:
        line.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(json.loads(line)) + "\n"
    return line


def finished(path: Path, rows: Sequence[Row], weights: str) -> int:
    """How many of ``rows`` the file holds already; a torn last line is cut off. What is no file, such as a pipe, holds none.

    Raises:
        DataError: it holds anything else: other rows, predictions of other weights, or no predictions.
    """
    if not path.is_file():
        return 0
    sound = done = 0
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True)):
        whole = line.endswith(b"\n")
        begins = line_of(rows[number], weights, {}).removesuffix("{}}\n").encode() if number < len(rows) else None
        if begins is None or not (line.startswith(begins) or (not whole and begins.startswith(line))):
            raise DataError(
                f"{path}, line {number + 1}: it is not the prediction for {rows[number].place if begins else 'a row given'} by these "
                "weights; give another --out, or delete the file"
            )
        if whole:
            sound += len(line)
            done += 1
    with path.open("r+b") as file:
        file.truncate(sound)
    return done


def write(path: Path, lines: Iterable[str]) -> None:
    """Append lines, each in the file before the next is computed.

    Raises:
        StorageError: it cannot be written; what was appended stays, and is gone on from.
    """
    ahead = iter(lines)
    first = list(islice(ahead, 1))  # a row that cannot be used leaves no empty file
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8")
    try:
        for line in chain(first, ahead):
            with storing(path):
                file.write(line)
                file.flush()
    finally:
        with storing(path):
            file.close()


def together(rows: Sequence[Row], weights: str, predictions: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The lines of rows and their predictions."""
    for row, prediction in zip(rows, predictions, strict=True):
        yield line_of(row, weights, prediction)
