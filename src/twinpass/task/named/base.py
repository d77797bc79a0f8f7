"""The contract of a task that has a name."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from twinpass.errors import DataError
from twinpass.task.rows import Item, Row
from twinpass.task.sources.read import FILES, Reader, reader_of
from twinpass.task.template import TextTemplate


class NamedTask(ABC):
    """A task in the format of the files that it was published as.

    ``train_files`` and ``eval_files`` are what they may be called in a folder; the first that is there is meant. Prompts end alike
    (``ends_alike``), as adapters that act on the answer need it.
    """

    train_files: ClassVar[Sequence[str]]
    eval_files: ClassVar[Sequence[str]]
    ends_alike: ClassVar[bool] = True

    @property
    @abstractmethod
    def template(self) -> TextTemplate:
        """What a row becomes."""

    def reader(self, path: Path) -> Reader:
        """How a file is read: by the end of its name, if the task does not say otherwise.

        Raises:
            DataError: it is not known.
        """
        return reader_of(path)

    def within(self, row: Row) -> Iterator[Item]:
        """The rows that one of a file holds."""
        yield row


class LinesTask(NamedTask):
    """A task whose files are lines of text, written as in ``example``. JSON lines and tables with a header are read as what they are."""

    example: ClassVar[str]
    encodings: ClassVar[Sequence[str]] = ("utf-8",)

    @abstractmethod
    def fields(self, line: str) -> Mapping[str, str] | None:
        """What a line says; None: it is written otherwise."""

    def reader(self, path: Path) -> Reader:
        return reader_of(path) if path.suffix in FILES else self._read

    def _read(self, path: Path) -> Iterator[Item]:
        for number, line in enumerate(_text(path, self.encodings).split("\n"), 1):
            if line.strip():
                yield self._row(line.rstrip("\r"), f"{path}, row {number}")

    def _row(self, line: str, place: str) -> Item:
        fields = self.fields(line)
        if fields is None:
            return DataError(f"{place}: expected a line such as {self.example!r}, got {line!r:.60}")
        return Row(dict(fields), place)


def _text(path: Path, encodings: Sequence[str]) -> str:
    whole = path.read_bytes()
    for encoding in encodings:
        try:
            return whole.decode(encoding)
        except UnicodeDecodeError as error:
            reason = error.reason
    raise DataError(f"{path}: not {' or '.join(encodings)} ({reason}); save the file as UTF-8")
