"""Rows inside of a row."""

from collections.abc import Mapping

from twinpass.errors import DataError
from twinpass.task.rows import Row


def objects(row: Row, key: str) -> list[Row]:
    """The object that a field is, or those that it holds, in their order.

    Raises:
        DataError: it is neither.
    """
    value = row.fields.get(key)
    if isinstance(value, Mapping):
        return [Row(dict(value), row.place)]
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        raise DataError(
            f"{row.place}: {key} is {value!r:.40}, expected an array of objects, as in the task's own files"
        )
    name = key.removesuffix("s")
    return [Row(dict(each), f"{row.place}, {name} {i}") for i, each in enumerate(value, 1)]
