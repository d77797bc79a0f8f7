"""A model as a reward is refused with the lines that ask it, and these work, as do those of the page."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from pages import snippets
from rewarding import rewards
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from twinpass.errors import RewardError
from twinpass.objective.reward_functions import RewardFunction, load_reward
from twinpass.objective.rewards import Completions

CHAT = "{% for m in messages %}{{ m.content }} {% endfor %}"
TEXTS = ("a fine", "film dull story", "great")
PLAIN = Completions(["Review: "] * 3, TEXTS, [(1,)] * 3, {}, ("row 1", "row 2", "row 3"))
TALKS = Completions(
    [[{"role": "user", "content": "Review:"}]] * 3,
    [[{"role": "assistant", "content": text}] for text in TEXTS],
    [(1,)] * 3,
    {},
    ("row 1", "row 2", "row 3"),
)


def saved(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A tiny reward model in a folder."""
    tokenizer = tiny.tokenizer("<end>")
    tokenizer.eos_token, tokenizer.chat_template = "<end>", CHAT
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = tiny.model().config
    config.num_labels = 1
    make: Any = AutoModelForSequenceClassification
    model = make.from_config(config).eval()
    model.save_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def alone(model: Any, tokenizer: Any) -> list[float]:
    """What it says of each text, which it is shown alone."""
    with torch.inference_mode():
        return [
            model(**tokenizer("Review: " + text, return_tensors="pt", add_special_tokens=False)).logits.item()
            for text in TEXTS
        ]


def test_the_lines_that_a_model_is_refused_with_ask_it(tmp_path: Path) -> None:
    model, tokenizer = saved(tmp_path / "my-reward-model")
    with pytest.raises(RewardError, match="is a model; a reward model is asked by a function of yours") as caught:
        RewardFunction.of(model)
    with pytest.raises(RewardError) as named:
        load_reward("owner/reward-model")
    known: dict[str, Any] = {"model": model, "tokenizer": tokenizer, "torch": torch}
    lines = str(caught.value).partition("\n")[2]
    assert lines == str(named.value).partition("\n")[2]
    exec(lines, known)
    assert rewards(known["score"])(PLAIN).total == pytest.approx(alone(model, tokenizer), abs=1e-6)


@pytest.mark.parametrize("batch", [PLAIN, TALKS])
def test_the_lines_of_the_page_ask_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: Completions) -> None:
    model, tokenizer = saved(tmp_path / "my-reward-model")
    _, _, lines = snippets("docs/rewards.md", "python")
    (tmp_path / "judge.py").write_text(lines)
    monkeypatch.chdir(tmp_path)
    liked = load_reward("judge.py:liked", tmp_path)
    assert rewards(liked.call)(batch).total == pytest.approx(alone(model, tokenizer), abs=1e-6)
