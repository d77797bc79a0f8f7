"""A tiny model and its tokenizer in a folder, rows to learn from, and a configuration that trains on them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import tomli_w
import torch
from architectures import build
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

ACTIVATED: dict[str, Any] = {"kind": "activated", "rank": 2, "alpha": 4.0}
INFORMED: dict[str, Any] = {"kind": "informed", "layers": 1, "fit_rows": 6}
"""``[trainable]`` of adapters that a tiny model learns by."""

DERIVED = ("backprop", "feedback", "jvp")
"""Estimators that have no eps."""

WORDS = ["[UNK]", "Review:", "Sentiment:", "bad", "good", "film", "fine", "dull", "a", "great", "story", "\n", ":"]


def tokenizer(*more: str) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that splits at spaces; it knows ``more`` words."""
    vocabulary = {word: i for i, word in enumerate((*WORDS, *more))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    make: Any = PreTrainedTokenizerFast
    return cast(PreTrainedTokenizerFast, make(tokenizer_object=inner, unk_token="[UNK]"))


def model(name: str = "llama") -> PreTrainedModel:
    """A tiny random model in float32."""
    return build(name, torch.float32)


def save(folder: Path, name: str = "llama") -> Path:
    """Write model and tokenizer as a Hugging Face folder."""
    model(name).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def rows(count: int) -> list[dict[str, Any]]:
    """Rows whose label is whether the text says fine or dull."""
    texts = [
        ("a fine film", 1),
        ("dull story", 0),
        ("great story a fine film", 1),
        ("a dull dull film", 0),
        ("fine", 1),
    ]
    return [{"text": texts[i % 5][0], "label": texts[i % 5][1]} for i in range(count)]


def config(folder: Path, **sections: Mapping[str, Any] | None) -> Path:
    """Write data and a configuration into ``folder``; ``sections`` override its keys, and None leaves one out."""
    save(folder / "model", str(dict(sections.pop("use", None) or {}).get("model", "llama")))
    for name, count in (("train", 12), ("eval", 6)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(count)))
    values: dict[str, dict[str, Any]] = {
        "model": {"path": str(folder / "model")},
        "trainable": {"kind": "lora", "rank": 2, "alpha": 4.0},
        "task": {
            "train": "train.jsonl",
            "eval": "eval.jsonl",
            "prompt": "Review: {text}",
            "suffix": " Sentiment:",
            "options": [" bad", " good"],
        },
        "estimator": {"probes": 2},
        "optimizer": {"lr": 1e-3, "steps": 8, "batch_size": 4},
        "epsilon": {"value": 1e-3},
        "run": {"out": str(folder / "run"), "seed": 3, "eval_every": 3},
    }
    for section, keys in sections.items():
        if keys is None:
            del values[section]
            continue
        if "kind" in keys:
            values[section] = {}
        values.setdefault(section, {}).update(keys)
    if values.get("estimator", {"kind": "backprop"}).get("kind") in DERIVED and "epsilon" not in sections:
        del values["epsilon"]
    path = folder / "config.toml"
    path.write_text(tomli_w.dumps(values))
    return path
