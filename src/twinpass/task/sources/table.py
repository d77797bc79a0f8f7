"""Tables as text, whose first line names the columns: CSV, and TSV. All values are texts."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from twinpass.errors import DataError
from twinpass.task.rows import Item, Row


def read_csv(path: Path) -> Iterator[Item]:
    """Commas, with quotes around what holds commas, quotes or line breaks."""
    csv.field_size_limit(2**31 - 1)  # as much as a C long holds anywhere; the default is 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        try:
            columns = _header(path, next(reader, []))
            filled = (cells for cells in reader if cells)
            for number, cells in enumerate(filled, 1):
                yield _row(columns, cells, f"{path}, row {number}")
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}, line {reader.line_num + 1}: {error}") from error


def read_tsv(path: Path) -> Iterator[Item]:
    """Tabs, a row a line. A cell in quotes, with those inside of it doubled, is taken out of them; any other quote is text."""
    for number, (cells, columns) in enumerate(_lines(path), 1):
        yield _row(columns, cells, f"{path}, row {number}")


def cells_of(line: str) -> list[str]:
    """The cells of a line with tabs."""
    return [_unquoted(cell) for cell in line.rstrip("\r\n").split("\t")]


def _lines(path: Path) -> Iterator[tuple[list[str], Sequence[str]]]:
    with path.open(encoding="utf-8-sig", newline="\n") as lines:
        number = 0
        try:
            for number, line in enumerate(lines, 1):
                if number == 1:
                    columns = _header(path, cells_of(line))
                elif line.strip("\r\n"):
                    yield cells_of(line), columns
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, after line {number}: not UTF-8 ({error.reason})") from error


def _unquoted(cell: str) -> str:
    inside = cell[1:-1]
    whole = len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in inside.replace('""', "")
    return inside.replace('""', '"') if whole else cell


def _header(path: Path, columns: Sequence[str]) -> Sequence[str]:
    for i, column in enumerate(columns):
        if column in columns[:i]:
            raise DataError(f"{path}: the header names the column {column!r} twice; rename or remove one of them")
    return columns


def _row(columns: Sequence[str], cells: Sequence[str], place: str) -> Item:
    if len(cells) != len(columns):
        return DataError(f"{place}: the header names {len(columns)} columns, the row differs, it has {len(cells)}")
    return Row(dict(zip(columns, cells, strict=True)), place)
