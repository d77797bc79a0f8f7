"""The examples that go by rewards: their functions, and two steps of each with the real model."""

import json
from pathlib import Path

import pytest

from twinpass.cli.main import main
from twinpass.cli.train import LEARNED_NOTHING
from twinpass.objective.reward_functions import load_reward

EXAMPLES = Path(__file__).parents[2] / "examples"


def called(name: str, completions: list[str], **columns: list[str]) -> list[float]:
    found: list[float] = load_reward(f"rewards.py:{name}", EXAMPLES).call(completions=completions, **columns)
    return found


def test_functions_of_the_examples() -> None:
    texts = ["It is 1,234.", "7 or 8", "none"]
    assert called("correct", texts, answer=["so\n#### 1234", "#### 7", "#### 3"]) == [1, 0, 0]
    assert called("varied", ["a b c", "a b d", "x y x y", "one"]) == pytest.approx([-1 / 2, -1 / 2, 2 / 3 - 1, 0.0])
    gloomy, cheerful = called("cheerful", ["a dull, horrible film", "a wonderful, great film"])
    assert -1 < gloomy < 0 < cheerful < 1


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "sets"),
    [
        ("cheerful", ["optimizer.batch_size=2", "task.samples=4", "task.steps_per_generation=2", "task.eval_rows=2"]),
        ("gsm8k", ["task.samples=2", "task.steps_per_generation=2", "task.eval_rows=1"]),
    ],
)
def test_two_steps(tmp_path: Path, name: str, sets: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    some = [*sets, "optimizer.steps=2", "run.eval_every=2", "generation.max_tokens=12", f"run.out={tmp_path / 'run'}"]
    options = [part for each in some for part in ("--set", each)]
    assert main(["train", str(EXAMPLES / f"{name}.toml"), *options, "--json"]) in (0, LEARNED_NOTHING)
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["steps"], summary["metric_name"]) == (2, "reward")
    samples = json.loads((tmp_path / "run" / "samples" / "step-2.json").read_text())
    assert samples["best"][0]["completion"]
