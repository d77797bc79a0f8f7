"""What a run stands on besides its model and configuration: hashes of data, tokenizer and code, for its journal."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from twinpass.model.identity import digest
from twinpass.report.environment import code
from twinpass.task.chat import ChatTemplate
from twinpass.task.example import Asked, Example
from twinpass.task.reward import RewardTemplate
from twinpass.task.rows import Item, Row
from twinpass.task.template import Template


def ground(
    template: Template,
    train: Sequence[Item],
    held_out: Sequence[Item],
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    configuration: str,
) -> dict[str, str]:
    """Hashes by name, and the model's ``configuration`` (:mod:`twinpass.config.architecture`); where one differs, a run would go on as another run."""
    return {
        "configuration": configuration,
        "train": _of_rows(train),
        "held_out": _of_rows(held_out),
        "template": _of_template(template),
        "tokenizer": tokenizer_hash(tokenizer),
        "examples": _of(json.dumps([asdict(replace(example, place="")) for example in examples], default=_kind)),
        **({"chat_template": chat_template_hash(tokenizer)} if _converse(template, examples) else {}),
        **code(),
    }


def _of_template(template: Template) -> str:
    """Of its settings; one that is no dataclass is known by its class alone, as the examples have a hash of their own."""
    settings: dict[str, object] = asdict(template) if is_dataclass(template) and not isinstance(template, type) else {}
    if isinstance(template, RewardTemplate):  # functions have a hash of their own
        settings = {name: settings[name] for name in (field.name for field in fields(RewardTemplate))}
    return digest({"kind": type(template).__qualname__, **settings})


def _of_rows(rows: Sequence[Item]) -> str:
    return _of(json.dumps([row.fields for row in rows if isinstance(row, Row)], sort_keys=True, default=_kind))


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of what decides which tokens a text becomes; not of padding and truncation, which rows never see."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        state: Any = sorted(tokenizer.get_vocab().items())
    else:
        state = json.loads(inner.to_str())
        state.pop("padding", None)
        state.pop("truncation", None)
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    return digest({"kind": type(tokenizer).__name__, "state": state, "special": special})


def chat_template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of what writes conversations as texts."""
    return _of(json.dumps(tokenizer.chat_template, sort_keys=True))


def _converse(template: Template, examples: Sequence[Example]) -> bool:
    """Whether prompts were written by the tokenizer's chat template."""
    return isinstance(template, ChatTemplate) or any(
        isinstance(each, Asked) and not isinstance(each.shown, str) for each in examples
    )


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


def _of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
