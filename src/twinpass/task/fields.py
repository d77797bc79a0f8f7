"""Values of a row's fields, found by their paths, and which of them are text."""

import math
import re
from typing import Any

from twinpass.errors import DataError
from twinpass.task.rows import Category, Row

PATH = re.compile(r"[^\W\d]\w*(?:[ -]\w+)*(?:\.\w+(?:[ -]\w+)*|\[\d{1,9}\])*")
"""A field, or one inside of it: ``answers.text[0]``. Its name may be of several words."""


def is_path(text: str) -> bool:
    """Whether it is written as the path of a field."""
    return PATH.fullmatch(text) is not None


def value_of(row: Row, path: str, user: str) -> object:
    """The value that ``user``, a key of the task, names.

    Raises:
        DataError: the row has none.
    """
    if path in row.fields:
        return plain(row.fields[path])
    found: Any = row.fields
    for name, number in re.findall(r"(\w[\w -]*)|\[(\d+)\]", path) if is_path(path) else [(path, "")]:
        key = int(number) if number and isinstance(found, list | tuple) else name
        try:
            found = found[key]
        except (KeyError, IndexError, TypeError) as error:
            has = f"the row has only {', '.join(map(str, row.fields))}" if row.fields else "the row has none"
            if found is not row.fields:
                has = f"and there is no {number or name} in what it names: {found!r:.40}"
            raise DataError(f"{row.place}: the {user} uses {{{path}}}, {has}") from error
    return plain(found)


def text_of(row: Row, path: str, user: str) -> str:
    """The same as text.

    Raises:
        DataError: it is none, such as null, a list or NaN.
    """
    try:
        return as_text(value_of(row, path, user))
    except ValueError as error:
        raise DataError(f"{row.place}: the {user} uses {{{path}}}, which {error}") from error


def as_text(value: object) -> str:
    """A text or number as it is written in a prompt.

    Raises:
        ValueError: saying what it is instead.
    """
    value = plain(value)
    if value is None:
        raise ValueError('is null; write "" for no text, or drop the row')
    if isinstance(value, bool):
        raise ValueError(f"is {str(value).lower()}, no text; write the word that is meant, or make it the label")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"is {value}, not a number that can be written; drop the row")
    if isinstance(value, Category):
        return value.text
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, bytes):
        raise ValueError("holds bytes that are no text in UTF-8; decode them by the encoding that they are in")
    if not isinstance(value, str):
        kinds: dict[type, str] = {list: "a list", tuple: "a list", dict: "an object"}
        if kind := kinds.get(type(value)):
            raise ValueError(f"is {kind}, no text; name what is inside of it, such as {{field[0]}} or {{field.name}}")
        raise ValueError(f"is of type {type(value).__name__}, no text; write it as one")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        found = f"\\u{ord(value[error.start]):04x}"
        raise ValueError(
            f"holds half a character ({found}, a lone surrogate); write it whole, or drop the row"
        ) from error
    return value


def plain(value: object) -> object:
    """Scalars of arrays, and bytes that are text in UTF-8, as files of Parquet have it, as Python's own."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return value
