"""A task of one's own is described in its result, whatever its rows come from."""

import hashlib
from pathlib import Path

import demo
import pytest
import tomli_w

TASKS = {
    "files": {
        "train": ["a.jsonl", "b.jsonl"],
        "eval": "a.jsonl",
        "prompt": "{text}",
        "suffix": " So",
        "options": [" a", " b"],
    },
    "a folder of a named task": {"name": "sst2", "path": "rows"},
    "one source": {"train": "a.jsonl", "prompt": "{text}", "suffix": " So", "options": [" a", " b"]},
}


@pytest.mark.parametrize("name", TASKS)
def test_rows_are_named_by_their_hashes(name: str, tmp_path: Path) -> None:
    for file in ("a.jsonl", "b.jsonl", "rows/train.tsv", "rows/dev.tsv"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(file)
    config = tmp_path / "it.toml"
    config.write_text(tomli_w.dumps({"model": {"path": "smollm2"}, "task": TASKS[name], "run": {"out": "out"}}))
    task = demo.described(config)["task"]
    a, b, train, dev = (
        {"name": Path(file).name, "sha256": hashlib.sha256(file.encode()).hexdigest()}
        for file in ("a.jsonl", "b.jsonl", "rows/train.tsv", "rows/dev.tsv")
    )
    expected = {
        "files": {"train": [a, b], "eval": a},
        "a folder of a named task": {"path": [dev, train]},
        "one source": {"train": a},
    }
    assert {key: task[key] for key in ("train", "eval", "path") if key in task} == expected[name]
