"""Tables as text, whose first line names the columns: CSV, and TSV. All values are texts."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from twinpass.errors import DataError
from twinpass.task.rows import Item, Row
from twinpass.task.sources.lines import not_utf8


def read_csv(path: Path, columns: Sequence[str] = ()) -> Iterator[Item]:
    """Commas, with quotes around what holds commas, quotes or line breaks.

    ``columns`` are those of a file without a header; a first line that names one of them is a header all the same.
    """
    csv.field_size_limit(2**31 - 1)  # as much as a C long holds anywhere; the default is 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as lines:
        yield from _named(path, _records(path, lines), columns)


def _records(path: Path, lines: Iterable[str]) -> Iterator[list[str]]:
    reader, read = csv.reader(lines, strict=True), 0
    try:
        for cells in reader:
            read = reader.line_num
            if cells:
                yield cells
    except csv.Error as error:
        ends = str(error) == "unexpected end of data"
        what = (
            "a quote that is opened here is never closed; close it"
            if ends
            else f"{error}; close quotes at a cell's end"
        )
        raise DataError(
            f"{path}, line {read + 1}: {what}, and write a quote inside of a cell in quotes twice"
        ) from error
    except UnicodeDecodeError as error:
        raise not_utf8(error, f"{path}, after line {reader.line_num}") from error


def read_tsv(path: Path, columns: Sequence[str] = ()) -> Iterator[Item]:
    """Tabs, a row a line, ``columns`` as before.

    A cell in quotes, with those inside of it doubled, is taken out of them; any other quote is text.
    """
    yield from _named(path, _lines(path), columns)


def cells_of(line: str) -> list[str]:
    """The cells of a line with tabs."""
    return [_unquoted(cell) for cell in line.rstrip("\r\n").split("\t")]


def _lines(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8-sig", newline="\n") as lines:
        number = 0
        try:
            for line in lines:
                number += 1
                if line.strip("\r\n"):
                    yield cells_of(line)
        except UnicodeDecodeError as error:
            raise not_utf8(error, f"{path}, after line {number}") from error


def _named(path: Path, rows: Iterator[list[str]], columns: Sequence[str]) -> Iterator[Item]:
    first = next(rows, [])
    if first and columns and not set(columns) & set(first):
        rows = chain([first], rows)
    else:
        columns = _header(path, first)
    for number, cells in enumerate(rows, 1):
        yield _row(columns, cells, f"{path}, row {number}")


def _unquoted(cell: str) -> str:
    inside = cell[1:-1]
    whole = len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in inside.replace('""', "")
    return inside.replace('""', '"') if whole else cell


def _header(path: Path, columns: Sequence[str]) -> Sequence[str]:
    if path.suffix == ".csv" and len(columns) == 1 and {";", "\t"} & set(columns[0]):
        kind, instead = ("semicolons", "") if ";" in columns[0] else ("tabs", ", or end its name in .tsv")
        raise DataError(
            f"{path}: the header names one column, {columns[0]!r:.60}: {kind} stand where commas should; save it with commas{instead}"
        )
    for i, column in enumerate(columns):
        if column in columns[:i]:
            raise DataError(f"{path}: the header names the column {column!r} twice; rename or remove one of them")
    return columns


def _row(columns: Sequence[str], cells: Sequence[str], place: str) -> Item:
    if len(cells) != len(columns):
        return DataError(f"{place}: the header names {len(columns)} columns, the row differs, it has {len(cells)}")
    return Row(dict(zip(columns, cells, strict=True)), place)
