"""Reward models say what they say of each text alone, in TRL's forms; what is none is refused, never drawn at random."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

import twinpass
from twinpass.config.load import load_config
from twinpass.config.reward import RewardTask
from twinpass.errors import RewardError
from twinpass.objective.reward_functions import RewardFunction, load_reward
from twinpass.objective.rewards import Completions, Rewards

CHAT = "{% for m in messages %}{{ m.content }} {% endfor %}"
TEXTS = ("a fine", "film dull story", "great") * 7
"""More than pass at once, of unlike lengths."""
PLACES = tuple(f"row {i}" for i in range(len(TEXTS)))
PLAIN = Completions(["Review: "] * len(TEXTS), TEXTS, [(1,)] * len(TEXTS), {}, PLACES)
TALKS = replace(
    PLAIN,
    prompts=[[{"role": "user", "content": "Review:"}]] * len(TEXTS),
    completions=[[{"role": "assistant", "content": text}] for text in TEXTS],
)


def made(folder: Path, labels: int = 1, seed: int = 0) -> tuple[Any, PreTrainedTokenizerFast]:
    """A tiny reward model in a folder."""
    tokenizer = tiny.tokenizer("<end>")
    tokenizer.eos_token, tokenizer.chat_template = "<end>", CHAT
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = tiny.model().config
    config.num_labels = labels
    make: Any = AutoModelForSequenceClassification
    make.from_config(config).save_pretrained(folder)
    return make.from_pretrained(folder), tokenizer


def alone(model: Any, tokenizer: Any) -> list[float]:
    """What it says of each text, which it is shown alone."""
    with torch.inference_mode():
        return [
            model(**tokenizer("Review: " + text, return_tensors="pt", add_special_tokens=False)).logits.item()
            for text in TEXTS
        ]


@pytest.mark.parametrize("batch", [PLAIN, TALKS], ids=["texts", "messages"])
def test_a_model_says_of_many_texts_what_it_says_of_each(tmp_path: Path, batch: Completions) -> None:
    model, tokenizer = made(tmp_path / "judge")
    model.train()
    expected = pytest.approx(alone(model.eval(), tokenizer), abs=1e-6)
    model.train()
    given: list[Any] = [model, twinpass.RewardModel(model, tokenizer)]
    for function in (
        *map(RewardFunction.of, given),
        load_reward("judge", tmp_path),
        load_reward(str(tmp_path / "judge")),
    ):
        assert function.name == "judge"
        assert Rewards([function])(batch).total == expected
    assert not model.training


def test_workers_load_it_by_its_folder(tmp_path: Path) -> None:
    model, tokenizer = made(tmp_path / "judge")
    shared = Rewards([load_reward("judge", tmp_path)], workers=1)
    try:
        assert shared(PLAIN).total == pytest.approx(alone(model, tokenizer), abs=1e-6)
    finally:
        shared.close()


def test_a_run_knows_it_by_its_weights(tmp_path: Path) -> None:
    first, *_ = (load_reward("judge", made(tmp_path / "judge", seed=seed) and tmp_path).code for seed in (0, 1))
    other = load_reward("judge", tmp_path).code
    assert first != other
    shutil.move(tmp_path / "judge", tmp_path / "moved")
    assert load_reward("moved", tmp_path).code == other


def test_a_run_goes_by_it(tmp_path: Path) -> None:
    """From a file beside which it lies, and in Python."""
    made(tmp_path / "judge")
    task = {"kind": "reward", "prompt": "Review: {text}", "rewards": ["judge"], "train": "train.jsonl", "train_rows": 4}
    settings = load_config(tiny.config(tmp_path, task=task, generation={"max_tokens": 2})).task
    assert isinstance(settings, RewardTask)
    assert settings.rewards == (str(tmp_path / "judge"),)
    assert [function.name for function in settings.functions] == ["judge"]
    model, _ = made(tmp_path / "judge")
    summary = twinpass.finetune(
        tiny.model(),
        tiny.tokenizer(),
        tiny.rows(4),
        tiny.rows(2),
        prompt="Review: {text}",
        rewards=[model],
        samples=2,
        generation=twinpass.Generation(max_tokens=2),
        optimizer=twinpass.AdamW(lr=1e-3, steps=2, batch_size=2),
        out=tmp_path / "run",
    )
    assert (summary["steps"], summary["metric_name"]) == (2, "reward")
    assert "rewards/judge/mean" in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_what_is_no_reward_model(tmp_path: Path) -> None:
    made(tmp_path / "classes", labels=3)
    with pytest.raises(RewardError, match=r"lacks score[.]weight for one label, which would be random"):
        load_reward("classes", tmp_path)
    tiny.save(tmp_path / "writer")
    with pytest.raises(RewardError, match=r"lacks score[.]weight for one label, which would be random"):
        load_reward("writer", tmp_path)
    classes, _ = made(tmp_path / "classes", labels=3)
    with pytest.raises(RewardError, match="with 3 labels is no reward model"):
        RewardFunction.of(classes)
    with pytest.raises(RewardError, match=r"ForCausalLM with \d+ labels is no reward model"):
        twinpass.RewardModel(tiny.model(), tiny.tokenizer())
    with pytest.raises(RewardError, match="'Linear' is a module and none of transformers' models"):
        RewardFunction.of(nn.Linear(2, 1))
    with pytest.raises(
        RewardError, match=r"no reward model could be loaded from there .* a function is named file[.]py:function"
    ):
        load_reward("./nowhere", tmp_path)


def test_a_name_on_the_hub_is_asked_for_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(place: str, **_: Any) -> None:
        asked.append(place)
        raise OSError("it is gated\nask its owner")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", answer)
    with pytest.raises(RewardError, match=r"'owner/judge': no reward model .* \(it is gated ask its owner\)"):
        load_reward("owner/judge")
    assert asked == ["owner/judge"]


def test_a_tokenizer_that_is_not_found_or_cannot_pad(tmp_path: Path) -> None:
    model, tokenizer = made(tmp_path / "judge")
    model.config._name_or_path = str(tmp_path / "nowhere")
    with pytest.raises(RewardError, match=r"give twinpass[.]RewardModel\(model, tokenizer\)"):
        RewardFunction.of(model)
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(RewardError, match="no token to pad with"):
        twinpass.RewardModel(model, tokenizer)
