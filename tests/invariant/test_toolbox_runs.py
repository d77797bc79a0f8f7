"""Runs with the tools beside SGD: cut anywhere and resumed, and replayed, to the same bits; they say what does not go together."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiers import some_fast

from twinpass.cli.main import main
from twinpass.config.load import load_config
from twinpass.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import page_toolbox
import toolbox

TOOLS: dict[str, dict[str, Any]] = {
    "sign": {"optimizer": {"kind": "sign", "steps": 6, "batch_size": 4}},
    "normalised": {"optimizer": {"kind": "normalised", "steps": 6, "batch_size": 4, "beta": 0.5}},
    "line": {"estimator": {"kind": "line", "probes": 2}},
    "fzoo": {"estimator": {"kind": "one_sided", "probes": 3, "normalise": True}, "engine": {"noise": "rademacher"}},
    "sign in place": {
        "optimizer": {"kind": "sign", "steps": 6, "batch_size": 4},
        "trainable": {"kind": "full"},
        "engine": {"perturbation": "inplace"},
    },
}


@pytest.mark.parametrize("tool", some_fast(TOOLS, ("normalised", "line")))
def test_cut_and_resumed_and_replayed_to_the_same_bits(tool: str, tmp_path: Path) -> None:
    config, run = tiny.config(tmp_path, **TOOLS[tool]), tmp_path / "run"
    assert main(["train", str(config), "--json"]) in (0, 3)
    journal = (run / "journal.jsonl").read_bytes()
    lines = journal.splitlines(keepends=True)
    steps = [record for record in map(json.loads, lines) if record["kind"] == "step"]
    assert all(step["clipped"] != step["gradients"] for step in steps) or tool == "fzoo"
    for cut in (3, len(lines) - 2):
        (run / "journal.jsonl").write_bytes(b"".join(lines[:cut]) + lines[cut][:25])
        assert main(["train", "--resume", str(run), "--json"]) in (0, 3)
        assert (run / "journal.jsonl").read_bytes() == journal, f"cut after {cut} lines"
    assert main(["replay", str(run), "--out", str(tmp_path / "again"), "--json"]) == 0
    one, two = (next(folder.rglob("*.safetensors")) for folder in (run, tmp_path / "again"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("sections", "lr"),
    [
        ({"optimizer": {"kind": "sign"}}, 1.0),
        ({"optimizer": {"kind": "normalised"}}, 1.0),
        ({"optimizer": {"kind": "sgd"}}, 4e-3),
        ({"optimizer": {"kind": "sgd"}, "estimator": {"kind": "line"}}, 1.0),
        ({"optimizer": {"kind": "sgd"}, "estimator": {"kind": "gauss_newton"}}, 1.0),
    ],
    ids=["sign", "normalised", "sgd", "line", "gauss_newton"],
)
def test_a_learning_rate_that_is_left_out_is_in_the_tool_s_own_unit(
    sections: dict[str, Any], lr: float, tmp_path: Path
) -> None:
    found = load_config(tiny.config(tmp_path, **sections)).optimizer
    assert (found.lr, found.steps, found.batch_size) == (lr, 400, 16)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"optimizer": {"kind": "sign"}, "estimator": {"kind": "line"}}, "says itself how far to go"),
        ({"optimizer": {"kind": "normalised"}, "estimator": {"kind": "gauss_newton"}}, "says itself how far to go"),
        ({"optimizer": {"kind": "sign"}, "estimator": {"kind": "backprop"}}, 'set "adamw"'),
        (
            {"estimator": {"kind": "line", "probes": 2}, "reuse": {"policy": "frozen"}, "trainable": {"kind": "full"}},
            "takes curvatures, which an approximation spoils",
        ),
    ],
)
def test_what_does_not_go_together_is_said(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(tiny.config(tmp_path, **sections))


@pytest.mark.full
def test_the_comparison_runs_in_parts_and_its_page_says_what_came_of_it(tmp_path: Path) -> None:
    (tmp_path / "trec.txt").write_text("NUM:date When ?\n")
    size = ["--model", str(tiny.save(tmp_path / "model")), "--train", "8", "--held-out", "4", "--seconds", "0.01"]
    part = [str(tmp_path / "trec.txt"), "--json", str(tmp_path / "it.json"), "--tasks", "reviews", *size]
    toolbox.main([*part, "--seeds", "1", "--methods", "sign", "principal inputs"])
    toolbox.main([*part, "--seeds", "2", "1", "--methods", "sign"])
    result = json.loads((tmp_path / "it.json").read_text())
    made = [(run["method"], run["factor"], run["seed"]) for run in result["runs"]]
    assert len(made) == len(set(made)) == 7
    assert all(run["steps"] >= 1 and run["train_seconds"] >= 0.01 for run in result["runs"])
    page = page_toolbox.section(result)
    assert "| sign | 1 | " in page
    assert page.count("| principal inputs | 0.0004 |") == 1
