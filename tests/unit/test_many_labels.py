"""The more options there are the more steps they are learned in, however their number is told."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

from twinpass import finetune
from twinpass.bench.rivals import exact
from twinpass.config.learner import LOOKED
from twinpass.config.load import parse
from twinpass.config.schema import Config
from twinpass.model.defaults import MANY
from twinpass.task.sources.lines import read_standard_input

NUMBERS = [f" kind {number}." for number in range(200)]


def config(task: dict[str, Any], folder: Path = Path("/nowhere"), **sections: Any) -> Config:
    values = {"model": {"path": "m"}, "task": {"train": "rows.jsonl", **task}, "run": {"out": "run"}, **sections}
    return parse(values, "it.toml", folder)


def of(options: int) -> dict[str, Any]:
    return {"prompt": "Review: {text}\n", "suffix": "Kind:", "options": NUMBERS[:options]}


@pytest.mark.parametrize(
    ("options", "steps"), [(2, 40), (MANY, 40), (MANY + 1, 80), (2 * MANY, 80), (50, 160), (200, 160)]
)
@pytest.mark.parametrize("trainable", [None, "activated", "lora"])
def test_more_options_take_more_steps_and_are_evaluated_as_often(
    options: int, steps: int, trainable: str | None
) -> None:
    named: dict[str, Any] = {} if trainable is None else {"trainable": {"kind": trainable}}
    found = config(of(options), **named)
    assert (found.optimizer.steps, found.run.eval_every) == (steps, steps // 5)


def test_what_is_said_stays() -> None:
    assert config(of(30), optimizer={"steps": 30}).optimizer.steps == 30
    assert config(of(30), optimizer={"lr": 2e-3}).optimizer.steps == 80
    assert config(of(30), trainable={"kind": "informed"}).optimizer.steps == 12


def test_races_are_run_as_the_task_is_learned() -> None:
    assert exact(config(of(30))).optimizer == config(of(30)).optimizer


def labelled(labels: int, rows: int) -> list[dict[str, Any]]:
    return [{"text": "ab ba", "label": f"kind {row % labels}"} for row in range(rows)]


@pytest.mark.parametrize(("labels", "steps"), [(3, 40), (MANY, 40), (MANY + 1, 80)])
def test_labels_of_rows_tell_how_many_there_are(tmp_path: Path, labels: int, steps: int) -> None:
    lines = [json.dumps(row) for row in labelled(labels, 60)]
    (tmp_path / "rows.jsonl").write_text("not json\n" + "\n".join(lines) + "\n")
    assert config({}, tmp_path).optimizer.steps == steps


@pytest.mark.parametrize(("labels", "steps"), [(3, 40), (MANY + 1, 80)])
def test_so_they_do_where_they_are_piped_in(monkeypatch: pytest.MonkeyPatch, labels: int, steps: int) -> None:
    lines = [json.dumps(row) for row in labelled(labels, LOOKED + 60)]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    assert config({"train": "-"}).optimizer.steps == steps
    assert len(list(read_standard_input())) == LOOKED + 60, "none is lost"


def test_a_pipe_that_stays_open_is_waited_for_no_longer_than_rows_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    source, sink = os.pipe()
    os.write(sink, "".join(json.dumps(row) + "\n" for row in labelled(MANY + 1, 40)).encode())
    with os.fdopen(source, "rb", buffering=0) as rest, os.fdopen(sink, "wb"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(rest)))
        assert config({"train": "-", "train_rows": 30}).optimizer.steps == 80


def test_no_more_rows_are_looked_at_than_some(tmp_path: Path) -> None:
    """Those behind are read in their turn."""
    lines = [json.dumps(row) for row in (*labelled(2, LOOKED), *labelled(30, 50))]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    assert config({}, tmp_path).optimizer.steps == 40


@pytest.mark.parametrize(("options", "steps"), [(MANY, 40), (MANY + 1, 80)])
def test_python_takes_as_many(tmp_path: Path, options: int, steps: int) -> None:
    words = [word for word in tiny.tokenizer().get_vocab() if word.isalpha()]
    texts = [f" {first} {second}" for first in words for second in words][:options]
    rows: list[dict[str, Any]] = [{"text": "a", "label": index % options} for index in range(2 * options)]
    task: dict[str, Any] = {"prompt": "Review: {text}", "suffix": " Sentiment:", "options": texts}
    finetune(tiny.model(), tiny.tokenizer(), rows, rows[:4], out=tmp_path / "said", max_seconds=1e-3, **task)
    named = [{"text": row["text"], "label": texts[row["label"]].strip()} for row in rows]
    finetune(tiny.model(), tiny.tokenizer(), named, named[:4], out=tmp_path / "labelled", max_seconds=1e-3)
    for name in ("said", "labelled"):
        assert f"steps = {steps}\n" in (tmp_path / name / "config.toml").read_text()
