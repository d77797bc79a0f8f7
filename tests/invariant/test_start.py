"""What ``twinpass init`` prints is filled in for rows of one's own where its arrows say so, and trains."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import tiny

from twinpass.cli.main import main
from twinpass.cli.train import LEARNED_NOTHING

FILLED: Mapping[str, Mapping[str, str]] = {
    "choice": {
        "train": '"mine.csv"',
        "prompt": '"Review: {body}\\n"',
        "options": '[" bad", " good"]',
        "label": '"liked"',
    },
    "completion": {"train": '"mine.csv"', "prompt": '"Review: {body}\\n"', "completion": '" {liked}"'},
    "named": {"name": '"sst2"', "path": '"sst2"'},
    "reward": {"train": '"asks.jsonl"', "rewards": '["mine.py:brief"]', "max_tokens": "4"},
}
"""What is written behind the arrows, by task and key; the model and the run folder are set below."""


@pytest.mark.parametrize("task", FILLED)
def test_a_start_is_filled_in_and_trains(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--task", task]) == 0
    lines = capsys.readouterr().out.splitlines()
    given = {**FILLED[task], "path": '"model"', "out": '"runs/mine"'}
    given |= {"path": '"sst2"'} if task == "named" else {}
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"eos_token": "story"})
    tiny.save(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("body", "liked"), *((f"a fine film {i}", ["bad", "good"][i % 2]) for i in range(12))]
        )
    (tmp_path / "asks.jsonl").write_text('{"prompt": "a fine film"}\n' * 12)
    (function,) = {line.split("for a start: ")[1] for line in lines if "for a start: " in line} or {""}
    (tmp_path / "mine.py").write_text(function)
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2/train.tsv").write_text("".join(f"a dull film\t{i % 2}\n" for i in range(12)))
    keys = [line.split("=")[0].strip() if "# <-" in line else "" for line in lines]
    assert set(given) <= set(keys), "every line that has to be changed has an arrow"
    filled = [f"{key} = {given[key]}" if key in given else line for key, line in zip(keys, lines, strict=True)]
    (tmp_path / "my.toml").write_text("\n".join(filled))
    small = [f"optimizer.{each}" for each in ("steps=1", "batch_size=2")] + ["task.samples=2"] * (task == "reward")
    settings = [f"model.path={tmp_path}/model", f"run.out={tmp_path}/runs/mine", *small]
    command = ["train", str(tmp_path / "my.toml"), "--json", *(part for each in settings for part in ("--set", each))]
    assert main(command) in (0, LEARNED_NOTHING)
    assert json.loads((tmp_path / "runs/mine/summary.json").read_text())["held_out"] == 1
