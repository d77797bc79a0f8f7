"""Sources of rows: whatever holds them, the same rows come out, no more are read than are wanted, and faults name their place."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import serving

from twinpass.errors import DataError
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.rows import Category, Item, Row
from twinpass.task.sources import array
from twinpass.task.sources.read import located, read, read_objects, read_rows

ROWS: list[dict[str, Any]] = [
    {"text": "a fine\tfilm", "label": "1"},
    {"text": 'say "so", or\u2028not', "label": "0"},
    {"text": "längst", "label": "1"},
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def fields(items: list[Item] | list[Row]) -> list[dict[str, Any]]:
    assert all(isinstance(item, Row) for item in items), items
    return [item.fields for item in items if isinstance(item, Row)]


def write_text(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text, encoding="utf-8")


FILES: dict[str, Callable[[Path], object]] = {
    "a.jsonl": write_text(LINES),
    "a.ndjson": write_text(LINES),
    "array.json": write_text(json.dumps(ROWS, indent=1)),
    "lines.json": write_text(LINES),
    "inside.json": write_text(json.dumps({"version": "1", "data": ROWS}, indent=1)),
    "inside-a-line.json": write_text(json.dumps({"version": "1", "data": ROWS})),
    "a.csv": lambda path: pd.DataFrame(ROWS).to_csv(path, index=False),
    "a.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("limit", [None, 1, 3])
def test_every_kind_of_file_holds_the_same_rows(tmp_path: Path, name: str, limit: int | None) -> None:
    FILES[name](tmp_path / name)
    found = read_rows(tmp_path / name, limit)
    assert fields(found) == ROWS[:limit]
    assert all(str(tmp_path / name) in row.place and row.place.endswith(f"row {i}") for i, row in enumerate(found, 1))
    with pytest.raises(DataError, match=f"{name}: the configuration asks for 4 rows, the file holds 3"):
        read_rows(tmp_path / name, 4)


def test_tables_with_tabs_keep_quotes_that_quote_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"half a quote\t1\nsay "so"\t0\n"say ""so"""\t1\n"whole"\t0\n"a" and "b"\t1\n')
    texts = ['"half a quote', 'say "so"', 'say "so"', "whole", '"a" and "b"']
    assert [row.fields["text"] for row in read_rows(path)] == texts
    path.write_text("text\tlabel\na\n")
    with pytest.raises(DataError, match=r"a\.tsv, row 1: the header names 2 columns, the row differs, it has 1"):
        read_rows(path)


def test_long_csv_fields_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,html\nfine," + "x" * 300_000 + "\n")
    assert len(read_rows(tmp_path / "a.csv")[0].fields["html"]) == 300_000


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
def test_an_array_may_be_cut_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(array, "CHUNK", chunk)
    rows = [{"a": [1, {"b": "]},["}]}, {}, {"c": 12345, "d": None}]
    for text in (json.dumps(rows), json.dumps(rows, indent=2), " [ ] ", "[]"):
        (tmp_path / "a.json").write_text(text)
        assert [item.fields for item in array.read_file(tmp_path / "a.json") if isinstance(item, Row)] == json.loads(
            text
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"a": 2]', r"row 2: not valid JSON \(Expecting ',' delimiter, 7 characters into the row\)"),
        ('[{"a": 1}, {"a": 2}', r"row 3: not valid JSON"),
        ('[{"a": 1} {"a": 2}]', r"after row 1: expected a comma or \], got '\{"),
        ('[{"a": 1},]', r"row 2: not valid JSON"),
        ('[{"a": 1}] x', "more follows after the array"),
        ('[{"a": 1}, 12]', r"row 2: expected an object such as .*, got 12"),
        ("12", "begins with '1'; expected an array of objects"),
        ('{"a": 1}', "an object with none inside; expected an array"),
        ('{"a": [{}], "b": [{}]}', r"an object with 2 arrays \(a, b\) inside"),
        ("[" + "[" * 100_000, "row 1: nested too deep"),
        (f'[{{"a": {"9" * 5000}}}]', "row 1: a number has too many digits"),
        ("", "holds no rows"),
        ("[]", "holds no rows"),
    ],
    ids=lambda value: value[:20],
)
def test_an_array_that_is_none_is_named_with_its_row(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=rf"a\.json.*{message}"):
        read_rows(tmp_path / "a.json")


def test_a_limit_does_not_read_the_whole_file(tmp_path: Path) -> None:
    """What follows far behind the limit cannot even be read."""
    padding = "x" * (2 << 20)
    (tmp_path / "a.jsonl").write_bytes(LINES.encode() + f'{{"a": "{padding}"}}\n'.encode() + b"\xff\n")
    (tmp_path / "a.json").write_bytes(json.dumps(ROWS).encode()[:-1] + f', {{"a": "{padding}"}}, '.encode() + b"\xff]")
    (tmp_path / "a.csv").write_bytes(b"text,label\na,1\nb,2\nc,3\n" + padding.encode() + b",\n\xff,\n")
    for name in ("a.jsonl", "a.json", "a.csv"):
        assert len(read_rows(tmp_path / name, 3)) == 3
        with pytest.raises(DataError, match=name):
            read_rows(tmp_path / name)


def test_a_limit_reads_as_many_batches_of_parquet_as_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": list(range(3000))}), path, row_group_size=100)
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 2] = b"\0" * (len(data) // 2 - len(data) // 3)
    path.write_bytes(data)
    assert [row.fields["n"] for row in read_rows(path, 300)] == list(range(300))
    with pytest.raises(DataError, match=r"a\.parquet"):
        read_rows(path)


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("text")
    with pytest.raises(DataError, match=r"a\.parquet: not a Parquet file that can be read"):
        read_rows(tmp_path / "a.parquet")


def test_lists_and_patterns_are_read_one_after_the_other(tmp_path: Path) -> None:
    for name, number in (("b.jsonl", 2), ("a.jsonl", 1), ("deep/c.jsonl", 3)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f'{{"n": {number}}}\n')
    for names, numbers in (
        (["b.jsonl", "a.jsonl"], [2, 1]),
        (["*.jsonl"], [1, 2]),
        (["**/*.jsonl"], [1, 2, 3]),
        (["deep/?.jsonl", "a.jsonl"], [3, 1]),
    ):
        absolute = [located(name, tmp_path) for name in names]
        assert [row["n"] for row in fields(read(absolute))] == numbers
    assert fields(read([located("*.jsonl", tmp_path)], limit=1)) == [{"n": 1}]
    with pytest.raises(DataError, match=r"\*\.csv: there is no such file"):
        read([located("*.csv", tmp_path)])


def test_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LINES.encode() + b"{\n")))
    items = read([located("-", tmp_path)])
    assert fields(items[:3]) == ROWS
    assert str(items[3]).startswith("standard input, row 4: not valid JSON")
    assert items[0].place == "standard input, row 1" if isinstance(items[0], Row) else False


# --- Hugging Face datasets, data frames


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> datasets.Dataset:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])})
    return datasets.Dataset.from_dict({"text": ["fine", "dull", "?"], "label": [0, 1, -1]}, features=features)


def test_class_labels_know_their_names(dataset: datasets.Dataset) -> None:
    rows = [item for item in read_objects(dataset, "train") if isinstance(item, Row)]
    assert [row.fields["label"] for row in rows] == [0, 1, None]
    assert [row.place for row in rows] == ["train, row 1", "train, row 2", "train, row 3"]
    label = rows[0].fields["label"]
    assert isinstance(label, Category)
    assert label.text == "pos"
    by_name = ChoiceTemplate(prompt="{text}", options=(" bad", " good"), labels=("neg", "pos"))
    by_index = ChoiceTemplate(prompt="{text}", options=(" good", " bad"))
    assert [by_name.answers(row)[1] for row in rows[:2]] == [1, 0]
    assert [by_index.answers(row)[1] for row in rows[:2]] == [0, 1]


def test_folders_of_datasets(dataset: datasets.Dataset, tmp_path: Path) -> None:
    both = datasets.DatasetDict({"train": dataset, "validation": dataset.select([1])})
    both.save_to_disk(str(tmp_path / "both"))
    dataset.save_to_disk(str(tmp_path / "one"))
    assert [row["text"] for row in fields(read(str(tmp_path / "both")))] == ["fine", "dull", "?"]
    (held,) = read(str(tmp_path / "both"), "eval")
    assert isinstance(held, Row)
    assert (held.fields["text"], held.place) == ("dull", f"{tmp_path}/both/validation, row 1")
    assert [row["text"] for row in fields(read(str(tmp_path / "both/validation")))] == ["dull"]
    assert [row["text"] for row in fields(read(str(tmp_path / "one"), limit=2))] == ["fine", "dull"]
    assert len(read(str(tmp_path / "one"), "rows")) == len(read(str(tmp_path / "one"))) == 3
    with pytest.raises(
        DataError, match=r"both: has several splits; name one of train, validation after a slash, as in .*both/train"
    ):
        read(str(tmp_path / "both"), "rows")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: not a dataset that can be loaded"):
        read(str(tmp_path / "empty"))


def test_a_folder_of_data_files(dataset: datasets.Dataset, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/train.jsonl").write_text(LINES)
    (tmp_path / "files/test.jsonl").write_text(LINES.splitlines()[0])
    assert fields(read(str(tmp_path / "files"))) == ROWS
    assert fields(read(str(tmp_path / "files"), "eval")) == ROWS[:1]
    with pytest.raises(DataError, match="files: has several splits; name one of its files, of train, test"):
        read(str(tmp_path / "files"), "rows")


@pytest.mark.parametrize("name", ["owner/data", "owner/data:config", "owner/data/train", "owner/da-ta.x:c/test[:10%]"])
def test_names_on_the_hub_stay_as_they_are(tmp_path: Path, name: str) -> None:
    assert located(name, tmp_path) == name
    (tmp_path / "owner").mkdir()
    assert located(name, tmp_path) == str(tmp_path / name), "a folder of that name is meant"


@pytest.mark.parametrize("name", ["data", "data/a.jsonl", "./data/a", "~/data", "/data/a", "a/b/c/d", "../a/b"])
def test_other_names_are_paths(tmp_path: Path, name: str) -> None:
    assert Path(located(name, tmp_path)).is_absolute()


def test_a_dataset_that_is_not_there_says_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"owner/data/train: there is no such file, and as the name of a dataset on the hub"
    ):
        read("owner/data/train")


FROM_THE_HUB = """
import json, sys
from twinpass.errors import DataError
from twinpass.task.sources.read import read

def found(name, role, limit):
    try:
        return [[row.place, row.fields["text"], str(row.fields["label"])] for row in read(name, role, limit)]
    except DataError as error:
        return str(error)

print(json.dumps([found(*each) for each in json.loads(sys.argv[1])]))
"""

CARD = """\
---
configs:
- config_name: plain
  data_files: [{split: train, path: plain/train.jsonl}, {split: test, path: plain/test.jsonl}]
- config_name: other
  data_files: [{split: train, path: other/rows.jsonl}]
- config_name: broken
  data_files: [{split: train, path: broken/rows.jsonl}]
---
"""


@pytest.mark.full
def test_rows_of_the_hub(tmp_path: Path) -> None:
    """From a hub on this machine: what it is asked and how it answers is as the libraries have it."""
    data = tmp_path / "hub/owner/data"
    for folder in ("plain", "other", "broken"):
        (data / folder).mkdir(parents=True)
    (data / "README.md").write_text(CARD)
    (data / "plain/train.jsonl").write_text(LINES)
    (data / "plain/test.jsonl").write_text(LINES.splitlines()[2] + "\n")
    (data / "other/rows.jsonl").write_text('{"text": "another", "label": "7"}\n')
    (data / "broken/rows.jsonl").write_text("text,label\n")
    asked = [
        ("owner/data:plain", "train", None),
        ("owner/data:plain", "train", 2),
        ("owner/data:plain", "eval", None),
        ("owner/data:plain/train[:1]", "eval", None),
        ("owner/data:other", "train", None),
        ("owner/data", "train", None),
        ("owner/data:broken", "train", None),
        ("owner/none", "train", None),
    ]
    with serving(tmp_path / "hub") as address:
        own = {
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }
        command = [sys.executable, "-c", FROM_THE_HUB, json.dumps(asked)]
        ran = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    *rows, ambiguous, broken, missing = json.loads(ran.stdout.splitlines()[-1])
    whole = [[f"owner/data:plain/train, row {i}", row["text"], row["label"]] for i, row in enumerate(ROWS, 1)]
    assert rows[:3] == [whole, whole[:2], [["owner/data:plain/test, row 1", "längst", "1"]]]
    assert rows[3:] == [
        [["owner/data:plain/train[:1], row 1", *whole[0][1:]]],
        [["owner/data:other/train, row 1", "another", "7"]],
    ]
    assert "Config name is missing" in ambiguous
    assert "JSON parse error" in broken, "the cause, and not only that there is one"
    assert "owner/none: there is no such file, and as the name of a dataset on the hub" in missing


def test_lists_in_a_data_frame_are_lists(tmp_path: Path) -> None:
    """Read from Parquet they are arrays."""
    rows = [{"messages": [{"role": "user", "content": "a"}], "answers": {"text": ["b", "c"]}}]
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    assert fields(list(read_objects(pd.read_parquet(tmp_path / "a.parquet"), "train"))) == rows


@pytest.mark.parametrize("kind", ["numpy", "torch", "pandas", "arrow"])
def test_the_format_of_a_dataset_changes_no_row(dataset: datasets.Dataset, kind: str) -> None:
    plain, formatted = (list(read_objects(each, "train")) for each in (dataset, dataset.with_format(kind)))
    assert fields(formatted) == fields(plain)
    assert [type(row["label"]) for row in fields(formatted)] == [Category, Category, type(None)]


def test_rows_of_python() -> None:
    frame = pd.DataFrame({"text": ["fine", "dull"], "label": [1.0, 0.0]})
    assert fields(list(read_objects(frame, "train"))) == [
        {"text": "fine", "label": 1.0},
        {"text": "dull", "label": 0.0},
    ]
    assert fields(list(read_objects(iter(ROWS), "train"))) == ROWS
    (bad,) = read_objects([["fine", 1]], "train")
    assert str(bad).startswith("train, row 1: expected an object such as")
    for wrong, message in (
        ("rows.jsonl", "got a str"),
        (datasets.DatasetDict(), "give one of them"),
        (ROWS[0], "got a dict"),
        (3, "got a int"),
    ):
        with pytest.raises(DataError, match=f"train: expected rows .*{message}"):
            list(read_objects(wrong, "train"))
