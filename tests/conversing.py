"""The tiny tokenizer with a chat template, and rows as they are encoded with it."""

from typing import Any

import tiny
from transformers import PreTrainedTokenizerFast

from twinpass.config.encode import Encoded, encode
from twinpass.config.tasks import AutoTask
from twinpass.core import Tokens
from twinpass.model.trainable import Lora, Trainable
from twinpass.task.rows import Item, Row

CHATML = (
    "{{ bos_token }} {% if think is defined %}{{ think }} {% endif %}{% for tool in tools or [] %}{{ tool.name }} {% endfor %}"
    "{% for message in messages %}<im> {{ message.role }} {{ message.content }} <end> \n{% endfor %}"
    "{% if add_generation_prompt %}<im> assistant {% endif %}"
)


def chatting(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a chat template; words that it does not know are [UNK]."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "<end>", "additional_special_tokens": ["<im>"]})
    tokenizer.add_tokens(
        ["user", "assistant", "system", "false", "true", *map(str, range(10)), *(f"{i:02}" for i in range(15))]
    )
    tokenizer.chat_template = template
    return tokenizer


def encoded(
    *rows: dict[str, Any], keys: dict[str, Any] | None = None, trainable: Trainable | None = None
) -> tuple[Encoded, PreTrainedTokenizerFast]:
    tokenizer, task = chatting(), AutoTask(**(keys or {}))
    model = tiny.model()
    model.resize_token_embeddings(len(tokenizer))
    items: list[Item] = [Row(row, f"a.jsonl, row {i}") for i, row in enumerate(rows, 1)]
    return encode(task, items, [], trainable or Lora(), model, tokenizer), tokenizer


def words(tokenizer: PreTrainedTokenizerFast, ids: Tokens) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(list(ids)))


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}
