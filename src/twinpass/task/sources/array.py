"""JSON: an array of objects, read as far as rows are wanted; or an object that holds one."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from twinpass.errors import DataError
from twinpass.task.rows import Item
from twinpass.task.sources import lines

CHUNK = 1 << 20
_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"\s*")


def read_file(path: Path) -> Iterator[Item]:
    """The rows of a file. One that holds an object a line is read as JSON lines."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = file.read(1)
            while first.isspace():
                first = file.read(1)
            if first == "[":
                yield from _elements(file, path)
                return
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    if first == "{":
        yield from lines.read_file(path) if _is_lines(path) else _inside(path)
    elif first:
        raise DataError(f"{path}: begins with {first!r}; expected an array of objects, [{{...}}, {{...}}]")


def _elements(file: TextIO, path: Path) -> Iterator[Item]:
    """What follows the array's bracket. ``at`` is where in ``text``, the part that was read, the next thing begins."""
    text, at, number, size, after = "", 0, 0, CHUNK, "["
    while True:
        at = _BLANK.match(text, at).end()  # type: ignore[union-attr]
        if text[at : at + 1] == "]" and after != ",":
            if text[at + 1 :].strip() or file.read(CHUNK).strip():
                raise DataError(f"{path}: more follows after the array; write one array of objects")
            return
        if text[at : at + 1] == "," and after == "}":
            at, after = at + 1, ","
            continue
        if after == "}" and at < len(text):
            raise DataError(f"{path}, after row {number}: expected a comma or ], got {text[at : at + 20]!r}")
        value, end = _decoded(text, at, f"{path}, row {number + 1}")
        if end is None or (end == len(text) and not isinstance(value, dict)):
            more = file.read(size)
            text, at, size = text[at:] + more, 0, 2 * size
            if more:
                continue
        if end is None:
            raise DataError(f"{path}, row {number + 1}: not valid JSON ({value})")
        number, at, after, size = number + 1, end, "}", CHUNK
        yield lines.row(value, f"{path}, row {number}")


def _decoded(text: str, at: int, place: str) -> tuple[object, int | None]:
    """A value and where it ends; or why there is none, and None, if more of the file may help."""
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        return f"{error.msg}, {error.pos - at} characters into the row", None
    except RecursionError as error:
        raise DataError(f"{place}: nested too deep to be read") from error
    except ValueError as error:
        raise DataError(f"{place}: a number has too many digits; write it as a text, in quotes") from error


def _is_lines(path: Path) -> bool:
    with path.open(encoding="utf-8-sig") as file:
        first = next((line for line in file if line.strip()), "")
        try:
            json.loads(first)
        except (ValueError, RecursionError):
            return False
        return any(line.strip() for line in file)


def _inside(path: Path) -> Iterator[Item]:
    whole = lines.parsed(path.read_text(encoding="utf-8-sig"), str(path))
    held = {key: value for key, value in whole.items() if isinstance(value, list) and value}
    if len(held) != 1:
        found = f"{len(held)} arrays ({', '.join(held)})" if held else "none"
        raise DataError(
            f"{path}: an object with {found} inside; expected an array of objects, or an object that holds one"
        )
    ((key, values),) = held.items()
    for number, value in enumerate(values, 1):
        yield lines.row(value, f"{path}, {key}, row {number}")
