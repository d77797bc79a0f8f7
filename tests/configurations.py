"""Configurations as values."""

from pathlib import Path
from typing import Any

import pytest

from twinpass.config.load import parse
from twinpass.errors import ConfigError

Values = dict[str, Any]


def minimal(**changes: Values) -> Values:
    """The shortest valid configuration; ``changes`` add keys to its sections, and None removes one."""
    values: Values = {
        "model": {"path": "some/model"},
        "trainable": {"kind": "full"},
        "task": {"train": "train.jsonl", "eval": "eval.csv", "prompt": "{text}", "options": [" no", " yes"]},
        "optimizer": {"lr": 1e-3, "steps": 10},
        "run": {"out": "runs/it"},
    }
    for section, keys in changes.items():
        merged = values.get(section, {}) | keys
        values[section] = {key: value for key, value in merged.items() if value is not None}
    return values


def problems_of(values: Values) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(values, "it.toml", Path("/nowhere"))
    return caught.value.problems


def debiased(policy: str, **keys: Any) -> dict[str, Values]:
    return {"reuse": {"policy": "debiased", "inner": {"policy": policy, **keys}}}


def joined(*schedules: Any) -> dict[str, Values]:
    return {"epsilon": {"kind": "join", "schedules": list(schedules), "boundaries": [5]}}
