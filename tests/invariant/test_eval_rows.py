"""``twinpass eval RUN ROWS`` needs what the run has left, and neither the rows that it was trained on nor a replay."""

import json
from pathlib import Path
from typing import Any

import pytest
import reward_runs
import tiny

import twinpass
from twinpass.cli.main import main

ADAMW = {"kind": "adamw", "lr": 1e-2, "steps": 4, "batch_size": 4}
WORDS: dict[str, Any] = {"prompt": "Review: {text}", "suffix": " Sentiment:", "options": [" bad", " good"]}


def evaluated(capsys: pytest.CaptureFixture[str], *command: Any) -> tuple[int, dict[str, Any], str]:
    """The exit code, what was printed, and what was said."""
    capsys.readouterr()
    code = main(["eval", *map(str, command), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else {}, err.replace("\n", " ")


def right(run: Path) -> float:
    answers = twinpass.load(run).predict(tiny.rows(6))
    named = [("bad", "good")[row["label"]] for row in tiny.rows(6)]
    return sum(answer.answer == name for answer, name in zip(answers, named, strict=True)) / 6


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"trainable": tiny.ACTIVATED, "estimator": {"kind": "backprop"}, "optimizer": ADAMW},
        {"trainable": {"kind": "full"}},
        {"task": {"kind": "auto", "train": "train.jsonl", "eval": "eval.jsonl"}},
    ],
)
def test_training_rows_may_be_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str], sections: Any) -> None:
    config = tiny.config(tmp_path, **sections)
    for name in ("train.jsonl", "eval.jsonl") if "task" in sections else ():
        rows = [{**row, "label": ["bad", "good"][row["label"]]} for row in tiny.rows(6)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["train", str(config), "--json"]) in (0, 3)
    run, others = tmp_path / "run", tmp_path / "others.jsonl"
    code, held_out, _ = evaluated(capsys, run)
    assert code == 0
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "eval.jsonl").rename(others)
    code, found, _ = evaluated(capsys, run, others)
    assert (code, found["step"], found["examples"]) == (0, held_out["step"], 6)
    assert found["metric"] == held_out["metric"] == right(run)
    assert found["loss"] == pytest.approx(held_out["loss"], rel=1e-5)
    assert evaluated(capsys, run, others, "--compare", run)[1]["comparison"]["difference"]["value"] == 0
    code, _, said = evaluated(capsys, run)
    assert (code, "there is no such file" in said) == (2, True), "held-out rows are read"
    code, _, said = evaluated(capsys, run, others, "--step", 1)
    assert (code, "there is no such file" in said) == (2, True), "another step is replayed"


def test_a_step_that_was_rebuilt_takes_no_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tiny.config(tmp_path)), "--json"]) in (0, 3)
    run, rows = tmp_path / "run", tmp_path / "eval.jsonl"
    code, replayed, _ = evaluated(capsys, run, rows, "--step", 2)
    assert (code, replayed["step"]) == (0, 2)
    assert main(["replay", str(run), "--step", "2"]) == 0
    (tmp_path / "train.jsonl").unlink()
    code, found, _ = evaluated(capsys, run, rows, "--step", 2)
    assert (code, found["step"]) == (0, 2)
    assert found["loss"] == pytest.approx(replayed["loss"], rel=1e-5)


def test_a_run_that_went_on_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What an earlier end of it has left is not where it stands."""
    assert main(["train", str(tiny.config(tmp_path)), "--json"]) in (0, 3)
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "kept_step": summary["kept_step"] + 1}))
    code, found, _ = evaluated(capsys, run, tmp_path / "eval.jsonl")
    assert (code, found["step"]) == (0, summary["kept_step"])
    (tmp_path / "train.jsonl").unlink()
    assert evaluated(capsys, run, tmp_path / "eval.jsonl")[0] == 2


@pytest.mark.parametrize("kind", ["completion", "reward"])
def test_runs_that_write_are_evaluated_so(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    """By the same texts, as these depend on seeds that the run has."""
    if kind == "reward":
        config = reward_runs.config(tmp_path, optimizer={"steps": 2, "lr": 0.1, "batch_size": 2})
        train, held = "prompts.jsonl", "held.jsonl"
    else:
        task = {"prompt": "Review: {text}", "completion": " {text}", "end": False}
        files = {"train": "train.jsonl", "eval": "eval.jsonl"}
        config = tiny.config(tmp_path, task={"kind": kind, **files, **task})
        train, held = "train.jsonl", "eval.jsonl"
    assert main(["train", str(config), "--json"]) in (0, 3)
    more = () if kind == "reward" else ("--write", "--max-tokens", "2")
    _, expected, _ = evaluated(capsys, tmp_path / "run", *more)
    (tmp_path / train).unlink()
    code, found, _ = evaluated(capsys, tmp_path / "run", tmp_path / held, *more)
    assert (code, found["step"], found["measures"].keys()) == (0, expected["step"], expected["measures"].keys())
    assert found["metric"] == pytest.approx(expected["metric"], rel=1e-5)


def test_a_run_of_finetune_is_evaluated_on_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.config(tmp_path)
    model, tokenizer = twinpass.load_model(str(tmp_path / "model"))
    run, rows = tmp_path / "mine", tmp_path / "eval.jsonl"
    optimizer = twinpass.AdamW(lr=1e-2, steps=4, batch_size=4)
    twinpass.finetune(model, tokenizer, tiny.rows(12), tiny.rows(6), **WORDS, optimizer=optimizer, out=run)
    code, found, _ = evaluated(capsys, run, rows)
    assert (code, found["metric_name"], found["metric"]) == (0, "accuracy", right(run))
    assert evaluated(capsys, run, "--task", tmp_path / "config.toml")[1]["metric"] == found["metric"]
    for command, remedy in (([run], "name some, as in: twinpass eval"), ([run, rows, "--step", 1], "leave --step out")):
        code, _, said = evaluated(capsys, *command)
        assert (code, remedy in said, "whose rows only Python knows" in said) == (2, True, True)


def test_rewards_of_finetune_are_known_to_python_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = twinpass.load_model(str(tiny.save(tmp_path / "model")))
    rows = [{"prompt": f"a {word} film"} for word in ("fine", "dull", "great", "bad")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    twinpass.finetune(
        model, tokenizer, rows, rewards=lambda completions: [float(len(text)) for text in completions], samples=2,
        steps_per_generation=1, optimizer=twinpass.AdamW(lr=1e-3, steps=1, batch_size=2), out=tmp_path / "run",
        generation=twinpass.Generation(max_tokens=3),
    )  # fmt: skip
    code, _, said = evaluated(capsys, tmp_path / "run", tmp_path / "rows.jsonl")
    assert (code, "reward functions that only Python knows: write its texts with 'twinpass predict'" in said) == (
        2,
        True,
    )
