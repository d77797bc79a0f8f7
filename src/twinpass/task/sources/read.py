"""Rows by the name of their source."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from twinpass.errors import DataError
from twinpass.paths import expand
from twinpass.task.rows import Item, Row, summary
from twinpass.task.sources import array, hub, lines, parquet, table

Role = Literal["train", "eval", "rows"]
"""What rows are for, which says what split of a dataset is meant: of "rows", its only one."""

Reader = Callable[[Path], Iterator[Item]]

FILES: Mapping[str, Reader] = MappingProxyType(
    {
        ".jsonl": lines.read_file,
        ".ndjson": lines.read_file,
        ".json": array.read_file,
        ".csv": table.read_csv,
        ".tsv": table.read_tsv,
        ".parquet": parquet.read_file,
    }
)
"""How a file is read, by the end of its name."""

PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z")
GLOB = "*?["


def located(name: str, folder: Path) -> str:
    """The source ``name``, with a path relative to ``folder`` made absolute; names on the hub and "-" stay as they are.

    Raises:
        ValueError, OSError: it is not usable as a path.
    """
    path = folder / expand(name)
    if name == lines.STDIN or (_may_be_on_hub(name) and not (folder / Path(name).parts[0]).exists()):
        return name
    return str(path.resolve())


def called(name: str) -> str:
    """A source in a sentence: files by their names, patterns and splits of datasets with the folder that they are of."""
    path = Path(name)
    if not path.is_absolute():
        return lines.STANDARD_INPUT if name == lines.STDIN else name
    if path.is_file() or (path.suffix in FILES and not _is_pattern(name)):
        return path.name
    found = [] if _exists(path) else _matching(path)
    if len(found) == 1:
        return found[0].name
    first = next((i for i, part in enumerate(path.parts) if found and _is_pattern(part)), len(path.parts) - 1)
    shown = str(Path(*path.parts[max(1, first - 1) :]))
    return f"the {len(found)} files of {shown}" if found else shown


def reader_of(path: Path) -> Reader:
    """How a file is read, by the end of its name.

    Raises:
        DataError: it is not known.
    """
    if path.suffix in PACKED:
        raise DataError(f"{path}: is compressed; unpack it first")
    if path.suffix.lower() not in FILES:
        raise DataError(f"{path}: expected a file ending in {', '.join(FILES)}; convert it, one example a row")
    return FILES[path.suffix.lower()]


def one_each(row: Row) -> Iterator[Item]:
    """A row of a file is a row."""
    yield row


def read(
    names: str | Sequence[str],
    role: Role = "train",
    limit: int | None = None,
    reader: Callable[[Path], Reader] = reader_of,
    within: Callable[[Row], Iterable[Item]] = one_each,
) -> list[Item]:
    """As many items of the sources, one after the other, as hold ``limit`` rows (None: all).

    Args:
        reader: how a file is read.
        within: the rows that one of a source holds.

    Raises:
        DataError: a source cannot be read, or they hold fewer rows.
    """
    every = (names,) if isinstance(names, str) else names
    items = chain.from_iterable(_open(name, role, reader, part=limit is not None) for name in every)
    return take(flattened(items, within), limit, ", ".join(every))


def beginning(name: str, limit: int) -> tuple[Row, ...]:
    """The rows among the first ``limit`` items of a source, for a look at what it holds.

    Raises:
        DataError: it cannot be read.
    """
    items = islice(_open(name, "train", reader_of, part=True), limit)
    return tuple(item for item in items if isinstance(item, Row))


def flattened(items: Iterable[Item], within: Callable[[Row], Iterable[Item]]) -> Iterator[Item]:
    """The rows that each holds, or why it cannot be said."""
    for item in items:
        if not isinstance(item, Row):
            yield item
            continue
        try:
            yield from within(item)
        except DataError as error:
            yield error


def read_rows(path: Path, limit: int | None = None) -> list[Row]:
    """The first ``limit`` rows of a file.

    Raises:
        DataError: the file or one of its rows cannot be read.
    """
    return sound(read(str(path), limit=limit))


def sound(items: Iterable[Item]) -> list[Row]:
    """Items that all have to be rows.

    Raises:
        DataError: some are none; it names them.
    """
    items = list(items)
    rows = [item for item in items if isinstance(item, Row)]
    if faults := [item for item in items if isinstance(item, DataError)]:
        raise DataError(summary(faults, len(rows)))
    return rows


def take(items: Iterable[Item], limit: int | None, name: str) -> list[Item]:
    """Items up to the row number ``limit``.

    Raises:
        DataError: there are none, or too few.
    """
    taken: list[Item] = []
    count = 0
    for item in items:
        taken.append(item)
        count += isinstance(item, Row)
        if count == limit:
            return taken
    if not taken:
        raise DataError(f"{name}: the file holds no rows")
    if limit is not None and count == len(taken):
        raise DataError(f"{name}: the configuration asks for {limit} rows, the file holds {count}; ask for fewer")
    return taken


def read_objects(rows: Any, name: str) -> Iterator[Item]:
    """Rows that Python has: mappings, a Hugging Face ``Dataset`` or a ``pandas.DataFrame``.

    Raises:
        DataError: they are something else.
    """
    if hasattr(rows, "features"):
        yield from hub.read_object(rows, name)
        return
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        rows = _records(rows, name)
    if isinstance(rows, Mapping | str) or not isinstance(rows, Iterable):
        kind = "several splits; give one of them" if _are_splits(rows) else f"a {type(rows).__name__}"
        raise DataError(f"{name}: expected rows such as a list of dictionaries or a Dataset, got {kind}")
    for number, fields in enumerate(rows, 1):
        place = f"{name}, row {number}"
        yield (
            Row(dict(fields), place)
            if isinstance(fields, Mapping)
            else lines.row(fields if isinstance(fields, str) else repr(fields), place)
        )


def _are_splits(rows: object) -> bool:
    return isinstance(rows, Mapping) and all(hasattr(each, "features") for each in rows.values())


def _records(frame: Any, name: str) -> Any:
    """Those of a data frame, what is missing as None.

    Raises:
        DataError: two columns have one name.
    """
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise DataError(f"{name}: two columns are named {twice!r}; rename or remove one of them")
    known = frame.notna().to_numpy()
    records = frame.to_dict("records")
    return [
        hub.filled(
            {key: _listed(value) if there else None for (key, value), there in zip(record.items(), row, strict=True)}
        )
        for record, row in zip(records, known, strict=True)
    ]


def _listed(value: Any) -> Any:
    """Arrays, which a data frame that was read from Parquet has for lists, as such."""
    if isinstance(value, Mapping):
        return {key: _listed(each) for key, each in value.items()}
    if isinstance(value, list) or getattr(value, "shape", None):
        return [_listed(each) for each in value]
    return value


def _open(name: str, role: Role, reader: Callable[[Path], Reader], *, part: bool) -> Iterator[Item]:
    if name == lines.STDIN:
        yield from lines.read_standard_input()
        return
    path = Path(name)
    try:
        if _exists(path):
            yield from hub.read_folder(path, role) if path.is_dir() else reader(path)(path)
        elif found := _matching(path):
            for each in found:
                yield from reader(each)(each)
        elif _may_be_on_hub(name):
            yield from hub.read_hub(name, role, part=part)
        else:
            hub.require_split(path)
            reader(path)
            raise _absent(name)
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}; give a file that can be opened") from error


def require_there(names: Iterable[str]) -> None:
    """Refuse sources that are not there, before anything is read; what a hub has is not asked.

    Raises:
        DataError: naming the first.
    """
    for name in names:
        if not (name == lines.STDIN or _exists(Path(name)) or _matching(Path(name)) or _may_be_on_hub(name)):
            raise _absent(name)


def _absent(name: str) -> DataError:
    of = "paths in a configuration are relative to the configuration file"  # and are absolute when they come here
    return DataError(f"{name}: there is no such file{'; ' + of if Path(name).is_absolute() else f' in {Path.cwd()}'}")


def _matching(pattern: Path) -> list[Path]:
    if not _is_pattern(str(pattern)):
        return []
    return sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))


def _is_pattern(text: str) -> bool:
    return any(sign in text for sign in GLOB)


def _exists(path: Path) -> bool:
    return path.exists() if "\0" not in str(path) else False


def _may_be_on_hub(name: str) -> bool:
    plain = not name.startswith((".", "~", "/")) and Path(name).suffix not in FILES
    return plain and hub.NAME.fullmatch(name) is not None
