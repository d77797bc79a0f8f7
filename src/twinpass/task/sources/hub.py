"""Datasets of Hugging Face: an object in memory, a folder, or a name on the hub."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from twinpass.errors import DataError
from twinpass.task.rows import Category, Item, Row

NAME = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?(?:/(?P<split>[\w.-]+(?:\[[\d:%]*\])?))?")
"""``owner/name``, then ``:config`` and ``/split`` where wanted."""

KINDS = {".jsonl": "lines", ".ndjson": "lines", ".csv": "tables", ".tsv": "tables", ".parquet": "columns"}
"""Files of rows in a folder, by what reads them."""

SPLITS: Mapping[str, Sequence[str]] = {
    "train": ("train",),
    "eval": ("validation", "valid", "val", "dev", "test"),
    "rows": (),
}


def read_folder(folder: Path, role: str) -> Iterator[Item]:
    """The rows of a folder that ``save_to_disk`` made, or of data files that ``load_dataset`` knows."""
    datasets = _library(str(folder))
    _require_one_kind(folder)
    saved = any((folder / name).exists() for name in ("dataset_dict.json", "state.json"))
    try:
        loaded = datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(str(folder))
    except Exception as error:  # of many kinds, some of them of other libraries
        raise DataError(f"{folder}: not a dataset that can be loaded: {_first_line(error)}") from error
    yield from read_object(*_chosen(loaded, role, str(folder), split=saved))


def read_hub(name: str, role: str, *, part: bool) -> Iterator[Item]:
    """The rows of a dataset on the hub, which is downloaded; only as far as rows are wanted, if a ``part`` is enough."""
    datasets = _library(name)
    found = NAME.fullmatch(name)
    if found is None:
        raise DataError(f"{name}: not the name of a dataset; write owner/name, owner/name:config or owner/name/split")
    try:
        loaded = datasets.load_dataset(found["id"], found["config"], split=found["split"], streaming=part)
    except Exception as error:
        raise DataError(
            f"{name}: there is no such file, and as the name of a dataset on the hub it cannot be loaded: {_first_line(error)}"
        ) from error
    yield from read_object(*_chosen(loaded, role, name, split=True))


def read_object(dataset: Any, name: str) -> Iterator[Item]:
    """The rows of a ``Dataset``, whatever format it is set to; numbers of a class label know its name."""
    if (getattr(dataset, "format", None) or {}).get("type") == "custom":
        raise DataError(f"{name}: the dataset has a transform, which is not seen here; apply it with map")
    dataset = dataset.with_format(None)
    classes = {key: feature.names for key, feature in (dataset.features or {}).items() if hasattr(feature, "int2str")}
    for number, fields in enumerate(dataset, 1):
        named = {key: _category(fields[key], names) for key, names in classes.items()}
        yield Row({**filled(fields), **named}, f"{name}, row {number}")


def filled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields without what Arrow adds to objects in lists, where another one has a key more: there null says that it is not there."""
    return {key: _filled(value) for key, value in fields.items()}


def _filled(value: Any, *, listed: bool = False) -> Any:
    if isinstance(value, list):
        return [_filled(each, listed=True) for each in value]
    if isinstance(value, Mapping):
        return {key: _filled(each, listed=listed) for key, each in value.items() if not listed or each is not None}
    return value


def require_split(path: Path) -> None:
    """Refuse what would lie in a dataset that ``save_to_disk`` wrote, and is none of its splits.

    Raises:
        DataError: naming those that there are.
    """
    if (path.parent / "dataset_dict.json").exists():
        splits = ", ".join(sorted(each.name for each in path.parent.iterdir() if each.is_dir()))
        raise DataError(f"{path}: the dataset has no such split; it has {splits}")


def _require_one_kind(folder: Path) -> None:
    """Refuse a folder whose files ``load_dataset`` would read in part: of several kinds it takes the most frequent.

    Raises:
        DataError: naming the kinds.
    """
    files = [
        path
        for path in folder.rglob("*")
        if not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    ]
    kinds = {KINDS[suffix]: suffix for path in files if (suffix := path.suffix.lower()) in KINDS}
    if len(kinds) > 1:
        found = sorted(kinds.values())
        raise DataError(
            f"{folder}: holds files of several kinds ({', '.join(found)}), and one of them would be read; name the files, as in {folder}/*{found[0]}"
        )


def _category(value: Any, names: Sequence[str]) -> Any:
    if not isinstance(value, int) or not 0 <= value < len(names):
        return None if value == -1 else value
    return Category(value, names[value])


def _chosen(loaded: Any, role: str, name: str, *, split: bool) -> tuple[Any, str]:
    """The dataset of ``role``, and its name; others go by the names of their splits (``split``), or of their files."""
    if not isinstance(loaded, Mapping):
        return loaded, name
    for usual in SPLITS[role]:
        if usual in loaded:
            return loaded[usual], f"{name}/{usual}" if split else f"{name}, {usual}"
    if len(loaded) == 1 and role != "eval":
        return next(iter(loaded.values())), name
    lacks = f"has no split {' or '.join(SPLITS[role])}" if SPLITS[role] else "has several splits"
    known = ", ".join(loaded)
    where = f"{known} after a slash, as in {name}/{next(iter(loaded), 'train')}" if split else f"its files, of {known}"
    raise DataError(f"{name}: {lacks}; name one of {where}")


def _library(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{name}: Hugging Face datasets are read by the library of that name; pip install datasets"
        ) from error
    return datasets


def _first_line(error: BaseException) -> str:
    """What an error says, and what the error says that it comes from."""
    own = (str(error).splitlines() or [type(error).__name__])[0]
    return own if error.__cause__ is None else f"{own}: {_first_line(error.__cause__)}"
