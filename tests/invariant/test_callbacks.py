"""A run tells who listens, and a cell of a notebook can be run again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny

import twinpass
from twinpass.cli.main import main
from twinpass.errors import DivergedError, JournalError


def finetune(out: Path, **keys: Any) -> dict[str, Any]:
    return twinpass.finetune(
        tiny.model(), tiny.tokenizer(), tiny.rows(6), tiny.rows(4), prompt="Review: {text}", options=[" bad", " good"],
        out=out, eval_every=2, **{"optimizer": twinpass.Sgd(lr=1e-3, steps=4, batch_size=2), **keys},
    )  # fmt: skip


def test_callbacks_are_told_what_metrics_hold(tmp_path: Path) -> None:
    told: list[Mapping[str, Any]] = []
    ends: list[Mapping[str, Any]] = []
    callbacks = twinpass.Callbacks(
        on_step=told.append, on_evaluation=told.append, on_rollback=told.append, on_end=ends.append
    )
    summary = finetune(tmp_path / "run", callbacks=callbacks)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert json.loads(json.dumps(told)) == lines
    assert [line["event"] for line in lines].count("evaluation") == 3
    assert ends == [summary]


def test_a_rollback_is_told(tmp_path: Path) -> None:
    told: dict[str, list[Mapping[str, Any]]] = {"steps": [], "rollbacks": [], "ends": []}
    callbacks = twinpass.Callbacks(
        on_step=told["steps"].append, on_rollback=told["rollbacks"].append, on_end=told["ends"].append
    )
    wild = twinpass.Sgd(
        lr=0.02, steps=60, batch_size=2, clip=0.0, guard_window=4, guard_metric=0.0, guard_loss=1e-6, guard_rollbacks=2
    )
    with pytest.raises(DivergedError):
        finetune(tmp_path / "run", callbacks=callbacks, optimizer=wild)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert json.loads(json.dumps(told["rollbacks"])) == [line for line in lines if line["event"] == "rollback"]
    assert len(told["rollbacks"]) == 2
    assert len(told["steps"]) == sum(line["event"] == "step" for line in lines)
    assert not told["ends"], "a run that fails has no summary"


def test_a_cell_is_run_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = finetune(out, exist="resume")
    journal = (out / "journal.jsonl").read_bytes()
    again = finetune(out, exist="resume")
    assert (out / "journal.jsonl").read_bytes() == journal
    assert again["final_metric"] == first["final_metric"]
    with pytest.raises(JournalError, match=r"already holds a run: exist=.resume. continues it"):
        finetune(out)
    for name in ("run-2", "run-3"):
        finetune(out, exist="new")
        assert (tmp_path / name / "journal.jsonl").exists()


def test_an_error_is_json_where_results_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["train", "none.toml"],
        ["eval", "none.toml"],
        ["predict", "none", "rows.jsonl"],
        ["runs", "none"],
        ["export", "none"],
    ):
        assert main([*command, "--json"]) == 2
        captured = capsys.readouterr()
        (line,) = captured.out.splitlines()
        event, message = json.loads(line).values()
        assert event == "error"
        assert message
        assert message.splitlines()[0] in captured.err
