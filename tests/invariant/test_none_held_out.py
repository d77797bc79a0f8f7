"""Runs of which no row is held out: they say so, train, and are used as any other."""

import json
from pathlib import Path
from typing import Any

import pytest
import reward_runs
import tiny

from twinpass.cli.main import main

ALL: dict[str, Any] = {"eval": [], "eval_fraction": 0.0}


def of_options(folder: Path) -> Path:
    return tiny.config(folder, task=ALL, optimizer={"steps": 2})


def of_completions(folder: Path) -> Path:
    return tiny.config(
        folder,
        task={
            **ALL,
            "kind": "completion",
            "train": "train.jsonl",
            "prompt": "Review:",
            "completion": " {text}",
            "end": False,
        },
        optimizer={"steps": 2},
    )


def of_rewards(folder: Path) -> Path:
    """As docs/rewards.md begins: with one prompt."""
    path = reward_runs.config(folder, task={"eval": []}, optimizer={"steps": 2})
    (folder / "prompts.jsonl").write_text('{"prompt": "a fine film", "bonus": 1.0}\n')
    return path


@pytest.mark.parametrize("written", [of_options, of_completions, of_rewards])
def test_a_run_without_held_out_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str], written: Any) -> None:
    path, run = written(tmp_path), str(tmp_path / "run")
    assert main(["train", str(path)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "no rows were held out, so that no " in said
    assert "[task] eval" in said
    assert "weights" in said
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["kept_metric"] is None
    assert main(["eval", run]) == 2
    assert "no rows are held out; name some, as in: twinpass eval RUN" in capsys.readouterr().err
    rows = "prompts.jsonl" if written is of_rewards else "train.jsonl"
    assert main(["eval", run, str(tmp_path / rows), "--json"]) == 0
    assert main(["predict", run, str(tmp_path / rows)]) == 0
    assert main(["runs", str(tmp_path)]) == 0
    assert main(["export", run, "--format", "peft", "--out", str(tmp_path / "handed")]) == 0
