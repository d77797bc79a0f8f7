"""Runs that have moved far from where they began, and what their models say."""

from pathlib import Path
from typing import Any

import tiny
import torch

from twinpass.cli.main import main
from twinpass.cli.train import LEARNED_NOTHING

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"trainable": {"kind": "lora", "rank": 2}},
    "activated": {"trainable": {"kind": "activated", "rank": 2}},
    "informed": {"trainable": {"kind": "informed", "layers": 1}},
    "full": {"trainable": {"kind": "full"}},
}
RATES = {"lora": 0.3, "activated": 0.3, "informed": 1.0, "full": 0.03}
ROWS = [{"text": "a fine film"}, {"text": "dull"}, {"text": "great great story"}]


def train(folder: Path, kind: str = "lora", **sections: Any) -> Path:
    """A run that has moved far from where it began, so that the trained weights matter."""
    optimizer = {"lr": RATES[kind], "steps": 6, "guard_loss": 0.0, "guard_metric": 0.0}
    config = tiny.config(folder, **{**KINDS[kind], **sections}, optimizer=optimizer)
    assert main(["train", str(config), "--set", "run.keep=last", "--json"]) in (0, LEARNED_NOTHING)
    return folder / "run"


def completion(folder: Path, kind: str) -> Path:
    config = tiny.config(folder, **KINDS[kind])
    text = config.read_text().replace(
        'options = [\n    " bad",\n    " good",\n]', 'kind = "completion"\ncompletion = " {text}"\nend = false'
    )
    config.write_text(text)
    assert main(["train", str(config), "--set", f"optimizer.lr={RATES[kind]}", "--set", "run.keep=last", "--json"]) in (
        0,
        LEARNED_NOTHING,
    )
    return folder / "run"


def by_hugging_face(model: Any, tokenizer: Any, prompt: str, tokens: int = 5) -> str:
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    options = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def logits(model: Any, text: str = "Review: a fine film Sentiment:") -> torch.Tensor:
    ids = torch.tensor([tiny.tokenizer()(text)["input_ids"]])
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits
    return found
