"""A command says which rows it takes, readably: files of patterns, splits of datasets, files of a public task's folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny

from twinpass.cli.main import main
from twinpass.config.load import load_config
from twinpass.config.origins import origins
from twinpass.task.sources.read import called

ROWS = [{"text": row["text"], "label": ["bad", "good"][row["label"]]} for row in tiny.rows(6)]


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("many/a.jsonl", "many/b.jsonl", "many/c.jsonl", "many/d.jsonl", "alone/a.jsonl"):
        write(tmp_path / name)
    for name in ("files/train.jsonl", "files/test.jsonl"):
        write(tmp_path / name)
    both = datasets.DatasetDict({name: datasets.Dataset.from_list(ROWS) for name in ("train", "dev")})
    both.save_to_disk(str(tmp_path / "both"))
    (tmp_path / "sst2").mkdir()
    for name in ("train", "dev"):
        (tmp_path / f"sst2/{name}.tsv").write_text("".join(f"a dull film\t{i % 2}\n" for i in range(4)))
    return tmp_path


LOADED: Mapping[str, str] = {
    "train.jsonl": "train.jsonl",
    "many/*.jsonl": "the 4 files of many/*.jsonl",
    "*/a.jsonl": "the 2 files of {folder}/*/a.jsonl",
    "alone/*.jsonl": "a.jsonl",
    "both": "{folder}/both",
    "both/dev": "both/dev",
    "-": "standard input",
    "owner/name": "owner/name",
}
"""What rows are called before they are read, by how a configuration names them."""


@pytest.mark.parametrize("name", LOADED)
def test_sources_are_called_so_that_they_can_be_read(name: str, sources: Path) -> None:
    config = load_config(tiny.config(sources, task={"train": name}))
    assert config.task.source == LOADED[name].format(folder=sources.name)


ORIGINS: Sequence[tuple[dict[str, Any], str]] = [
    ({"train": "train.jsonl", "eval": "eval.jsonl"}, ""),
    ({"train": "both", "eval": "both"}, "training rows are those of both/train; held-out rows are those of both/dev"),
    ({"train": "both"}, "training rows are those of both/train"),
    ({"train": "alone/a.jsonl", "eval": "files"}, "held-out rows are those of files, test"),
    ({"train": "alone/*.jsonl", "eval": "both/dev"}, "training rows are those of a.jsonl"),
    ({"train": "many/*.jsonl"}, "training rows are those of a.jsonl, b.jsonl, c.jsonl and 1 more"),
    ({"name": "sst2", "path": "sst2"}, "training rows are those of train.tsv; held-out rows are those of dev.tsv"),
]


@pytest.mark.parametrize(("task", "said"), ORIGINS, ids=[str(number) for number in range(len(ORIGINS))])
def test_files_and_splits_that_were_taken_are_said(task: dict[str, Any], said: str, sources: Path) -> None:
    config = load_config(tiny.config(sources, task={"kind": "named" if "name" in task else "auto", **task}))
    note = "; ".join(origins(config.task, *config.task.rows()))
    assert note.replace(f"{sources.name}/", "") == said


def test_a_command_says_them(sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny.config(sources, task={"kind": "auto", "train": "both", "eval": "both"})
    assert main(["eval", str(config)]) == 0
    assert ORIGINS[1][1] in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.full
def test_the_rows_of_another_task_are_said(sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny.config(sources, optimizer={"steps": 1})
    assert main(["train", str(config), "--json"]) in (0, 3)
    other = tiny.config(sources, task={"kind": "auto", "train": "both", "eval": "both"})
    capsys.readouterr()
    assert main(["eval", str(sources / "run"), "--task", str(other)]) == 0
    assert "held-out rows are those of both/dev" in capsys.readouterr().err.replace("\n", " ")


def test_what_is_called_need_not_be_there() -> None:
    assert called("/no/such/rows-*.jsonl") == "such/rows-*.jsonl"
    assert called("/rows.jsonl") == "rows.jsonl"
