"""Data frames, datasets and folders as users have them: what is missing is None, nothing is read in part, and faults say what to do."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twinpass.errors import DataError
from twinpass.task.forms import ALPACA
from twinpass.task.rows import Item, Row
from twinpass.task.sources.read import read, read_objects, read_rows
from twinpass.task.text import compiled

LINE = '{"text": "a fine film", "label": 1}\n'
CALLS = [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {"b": "2"}}]
MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": CALLS}]


def fields(items: list[Item]) -> list[dict[str, Any]]:
    assert all(isinstance(item, Row) for item in items), items
    return [item.fields for item in items if isinstance(item, Row)]


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA], ids=str)
def test_what_a_data_frame_lacks_is_none(missing: Any) -> None:
    """Such as an empty cell of a CSV file that pandas has read: Alpaca's input may be one."""
    frame = pd.DataFrame(
        {"instruction": ["Sum up.", "Go on."], "input": ["it", missing], "output": ["a", "b"], "n": [1, None]}
    )
    rows = fields(list(read_objects(frame, "train")))
    assert rows[0] == {"instruction": "Sum up.", "input": "it", "output": "a", "n": 1.0}
    assert rows[1] == {"instruction": "Go on.", "input": None, "output": "b", "n": None}
    prompts = [compiled("prompt", ALPACA, "jinja").fill(Row(row, "row")) for row in rows]
    assert ["### Input:\nit\n" in prompts[0], "Input" in prompts[1]] == [True, False]


def test_columns_of_one_name_are_refused() -> None:
    frame = pd.DataFrame([["a", "b", 1]], columns=["text", "text", "label"])
    with pytest.raises(DataError, match="train: two columns are named 'text'; rename or remove one of them"):
        list(read_objects(frame, "train"))


def test_what_arrow_adds_to_messages_is_not_there(tmp_path: Path) -> None:
    """Objects in a list get all keys that any of them has: without this a call would have arguments that it does not."""
    row = {"messages": MESSAGES, "note": None, "target": {"a": 1, "b": None}}
    found = datasets.Dataset.from_list([row])
    found.save_to_disk(str(tmp_path / "saved"))
    found.to_parquet(tmp_path / "a.parquet")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "b.parquet")
    for source in ("saved", "a.parquet", "b.parquet"):
        assert fields(read(str(tmp_path / source))) == [row], source
    assert fields(list(read_objects(found, "train"))) == [row]
    assert fields(list(read_objects(pd.read_parquet(tmp_path / "b.parquet"), "train"))) == [row]


def test_a_transform_of_a_dataset_is_refused() -> None:
    """It would not be seen, as formats are left out."""
    found = datasets.Dataset.from_list([{"text": "a"}])
    assert fields(list(read_objects(found.with_format("numpy", columns=[]), "train"))) == [{"text": "a"}]
    with pytest.raises(
        DataError, match="train: the dataset has a transform, which is not seen here; apply it with map"
    ):
        list(read_objects(found.with_transform(lambda batch: {"text": ["b"]}), "train"))


def test_a_folder_is_read_whole_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``load_dataset`` takes files of the most frequent kind, and leaves out others without a word."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "files"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.jsonl").write_text(LINE)
    (folder / "README.md").write_text("Two files.")
    assert len(read(str(folder))) == 1
    (folder / "deep/b.csv").write_text("text,label\nb,0\n")
    with pytest.raises(
        DataError, match=r"files: holds files of several kinds \(\.csv, \.jsonl\), and one of them would"
    ):
        read(str(folder))


def test_a_split_that_a_saved_dataset_lacks_is_named(tmp_path: Path) -> None:
    one = datasets.Dataset.from_list([{"text": "a"}])
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(DataError, match="both/dev: the dataset has no such split; it has test, train"):
        read(str(tmp_path / "both/dev"))


def test_names_of_files_end_in_capitals_too(tmp_path: Path) -> None:
    for name, text in (("A.JSONL", LINE), ("A.Json", f"[{LINE}]"), ("A.CSV", "text,label\na fine film,1\n")):
        (tmp_path / name).write_text(text)
        assert [row.fields["text"] for row in read_rows(tmp_path / name)] == ["a fine film"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.zst", "a.zip"])
def test_a_packed_file_has_to_be_unpacked(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(json.dumps({"text": "a"}).encode()))
    with pytest.raises(DataError, match=rf"{name}: is compressed; unpack it first"):
        read_rows(tmp_path / name)
