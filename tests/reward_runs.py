"""Reward functions, prompts and a configuration that trains by them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiny

REWARDS = """
from pathlib import Path

CALLS = Path(__file__).with_name("calls.txt")


def few(completions, completion_ids, bonus, trainer_state, log_extra, log_metric, **kwargs):
    with CALLS.open("a") as file:
        file.write(f"{trainer_state.global_step}/{trainer_state.max_steps} {len(completions)}\\n")
    log_extra("first", [ids[0] for ids in completion_ids])
    log_metric("seen", len(completions))
    return [b + sum(i < 48 for i in ids) / len(ids) for b, ids in zip(bonus, completion_ids)]


def short(completions, **kwargs):
    return [-float(len(text.split())) for text in completions]


def fussy(completions, answer, **kwargs):
    return [0.0 for _ in completions]


def silent(completions, **kwargs):
    return [None for _ in completions]
"""
SECTIONS: Mapping[str, Mapping[str, Any]] = {
    "task": {
        "kind": "reward",
        "train": "prompts.jsonl",
        "eval": "held.jsonl",
        "rewards": ["rewards.py:few", "rewards.py:short"],
        "weights": [1.0, 0.01],
        "samples": 2,
    },
    "generation": {"max_tokens": 6},
    "estimator": {"kind": "spsa", "probes": 2},
    "optimizer": {"lr": 0.1, "steps": 6, "batch_size": 2},
    "epsilon": {"value": 0.1},
}


def prompts(folder: Path) -> None:
    rows = [
        {"prompt": f"a {word} film", "bonus": 0.5, "id": i} for i, word in enumerate(["fine", "dull", "great", "bad"])
    ]
    for name, part in (("prompts", rows[:3]), ("held", rows[1:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (folder / "rewards.py").write_text(REWARDS)


def config(folder: Path, **sections: Any) -> Path:
    prompts(folder)
    merged = {
        name: keys if name == "epsilon" else {**SECTIONS.get(name, {}), **keys} for name, keys in sections.items()
    }
    whole = merged.get("estimator", {}).get("kind") in tiny.DERIVED
    return tiny.config(
        folder, **{**{name: keys for name, keys in SECTIONS.items() if not whole or name != "epsilon"}, **merged}
    )
