"""Training on texts: the loss falls, the numbers are those of plain MeZO, a run is resumed and replayed as any other."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from safetensors.torch import load_file
from tiers import some_fast

from twinpass.api import finetune
from twinpass.bench.rivals import naive
from twinpass.cli.main import main
from twinpass.config.compose import build
from twinpass.config.load import load_config
from twinpass.core import BASE
from twinpass.errors import ConfigError
from twinpass.objective.base import scored
from twinpass.train.adamw import AdamW
from twinpass.train.optimizer import Sgd

TASK = {
    "kind": "completion",
    "train": "train.jsonl",
    "eval": "eval.jsonl",
    "prompt": "Sentiment: {label} \n",
    "completion": " {text}",
    "end": False,
}


def config(folder: Path, **sections: Any) -> Path:
    return tiny.config(folder, **{"task": TASK, **sections})


@pytest.mark.parametrize("kind", some_fast(["full", "lora"], ["lora"]))
def test_the_loss_falls(tmp_path: Path, kind: str) -> None:
    lr, eps = (1e-3, 1e-3) if kind == "full" else (2e-3, 1e-2)
    sections = {"trainable": {"kind": kind}, "optimizer": {"lr": lr, "steps": 200}, "epsilon": {"value": eps}}
    assert main(["train", str(config(tmp_path, **sections)), "--json"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["metric_name"] == "token_probability"
    assert summary["final_metric"] > 1.5 * summary["base_metric"]
    assert summary["hit_rate"] > 0


def test_the_default_trains_a_model_that_calls_its_layers_otherwise(tmp_path: Path) -> None:
    words: dict[str, Any] = {"prompt": "Sentiment: {label} \n", "completion": " {text}", "end": False}
    short = AdamW(steps=2, batch_size=2)
    finetune(tiny.model("gpt2"), tiny.tokenizer(), tiny.rows(8), [], **words, optimizer=short, out=tmp_path)
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["target_modules"] == ["c_attn", "c_proj"]


def test_plain_mezo_scores_the_same(tmp_path: Path) -> None:
    path = config(tmp_path, trainable={"kind": "full"})
    plan = build(load_config(path)).plan
    rival = naive(load_config(path), scored(plan.objective))
    engine, objective = build(load_config(path)).engine, scored(plan.objective)
    scores = engine.score(objective.requests(plan.train), [BASE]).values[0]
    assert rival.loss(plan.train) == pytest.approx(objective.loss(plan.train, scores), abs=1e-5)


def test_a_run_is_replayed_to_the_bit(tmp_path: Path) -> None:
    assert main(["train", str(config(tmp_path)), "--json"]) == 0
    run = tmp_path / "run"
    assert main(["replay", str(run), "--out", str(tmp_path / "again")]) == 0
    first, again = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (run, tmp_path / "again"))
    assert all((again[name] == tensor).all() for name, tensor in first.items())


def test_from_python(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"eos_token": "[UNK]"})
    rows, optimizer = tiny.rows(8), Sgd(lr=1e-2, steps=4, batch_size=4)
    prompt = "Sentiment: {label} \n"
    folder = tmp_path / "run"
    summary = finetune(
        tiny.model(), tokenizer, rows, rows, prompt=prompt, completion=" {text}", optimizer=optimizer, out=folder
    )
    assert summary["metric_name"] == "token_probability"


@pytest.mark.parametrize(
    "answers", [{}, {"options": (" a", " b"), "completion": " {text}"}, {"completion": " {text}", "labels": ("a", "b")}]
)
def test_either_options_or_a_completion(tmp_path: Path, answers: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"options to choose from|labels"):
        finetune(tiny.model(), tiny.tokenizer(), tiny.rows(8), prompt="{text}", out=tmp_path / "run", **answers)
    assert not (tmp_path / "run").exists()


def test_unknown_keys_of_the_other_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(config(tmp_path, task={**TASK, "options": [" a", " b"]}))]) == 2
    assert "[task] options: no such key" in capsys.readouterr().err
