"""What a model's configuration says of how it computes: the same weights under another one are another model."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel


def computing(model: PreTrainedModel) -> str:
    """That as JSON, such as how positions turn and how far attention looks, without what only training, writing or saving goes by."""
    usual = PreTrainedConfig().to_dict()
    return json.dumps(_own(model.config.to_dict(), usual), sort_keys=True, default=str)


def differing(before: str, now: str) -> Iterator[str]:
    """Keys that say otherwise ``now``, with both values; those of one alone are another version's of transformers."""
    old, new = json.loads(before), json.loads(now)
    for key in sorted(old.keys() & new.keys()):
        if old[key] != new[key]:
            yield f"{key} was {json.dumps(old[key])}, now {json.dumps(new[key])}"


def _own(said: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _own(value, usual) if isinstance(value, Mapping) else value
        for key, value in said.items()
        if key not in usual and not _idle(key)
    }


def _idle(key: str) -> bool:
    """Whether scores do not depend on it."""
    return key in ("use_cache", "initializer_range") or key.endswith(("_token_id", "dropout", "pdrop"))
