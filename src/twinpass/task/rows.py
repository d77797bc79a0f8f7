"""A row, and rows that cannot be used."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from twinpass.errors import DataError


@dataclass(frozen=True, slots=True)
class Row:
    """Named fields, and ``place`` ("reviews.jsonl, row 7") for messages."""

    fields: dict[str, Any]
    place: str

    @property
    def source(self) -> str:
        """The file or dataset that it is a row of."""
        return self.place.rpartition(", row ")[0]


class Category(int):
    """A number that stands for a name, as in the class labels of Hugging Face datasets."""

    text: str

    def __new__(cls, value: int, text: str) -> "Category":
        made = super().__new__(cls, value)
        made.text = text
        return made


Item = Row | DataError
"""A row, or why it could not be read."""

OnError = Literal["stop", "skip"]
SHOWN = 20
MEND = "mend them, or leave them out"
SKIP = f'{MEND} with task.on_error = "skip"'

T = TypeVar("T")


class Faults:
    """Collects what is wrong with rows: all of it is said at once, or (with ``on_error`` "skip") they are left out."""

    def __init__(self, on_error: OnError) -> None:
        self.on_error = on_error
        self.found: list[DataError] = []

    def rows(self, items: Iterable[Item]) -> Iterator[Row]:
        """The rows among them."""
        for item in items:
            if isinstance(item, Row):
                yield item
            else:
                self.found.append(item)

    def settle(self, usable: int) -> None:
        """To be called when all rows were seen, of which ``usable`` are left.

        Raises:
            DataError: rows are bad and may not be left out, or none is left.
        """
        if self.found and (self.on_error == "stop" or not usable):
            raise DataError(summary(self.found, usable, SKIP if self.on_error == "stop" else ""))


def every(rows: Iterable[Row], made: Callable[[Row], T]) -> list[T]:
    """What is ``made`` of each row, where none may be left out.

    Raises:
        DataError: naming the rows that it cannot be made of.
    """
    found: list[T] = []
    faults = []
    for row in rows:
        try:
            found.append(made(row))
        except DataError as error:
            faults.append(error)
    if faults:
        raise DataError(summary(faults, len(found)))
    return found


def summary(faults: list[DataError], usable: int, advice: str = MEND) -> str:
    """The first faults, how many more there are, and what to do. What is wrong with no row of its own, such as a tokenizer, is said once."""
    each = list(dict.fromkeys(map(str, faults)))
    if len(each) == 1:
        return each[0]
    lines = [f"{len(faults)} of {len(faults) + usable} rows cannot be used:"]
    lines += [f"  - {fault}" for fault in each[:SHOWN]]
    if len(each) > SHOWN:
        lines.append(f"  - and {len(each) - SHOWN} more")
    return "\n".join([*lines, advice] if advice else lines)
