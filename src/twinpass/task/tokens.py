"""Text as a model reads it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from twinpass.core import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def ids_of(tokenizer: "PreTrainedTokenizerBase", text: str, *, special: bool = True) -> Tokens:
    """Token ids, with what the tokenizer puts in front of a text (if ``special``) once, and nothing after it.

    A text that begins with the beginning-of-text token itself gets no second one.
    """
    return _plain(tokenizer, text, tokenizer(text, add_special_tokens=special)["input_ids"], special)


def ids_of_each(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[Tokens]:
    """What :func:`ids_of` makes of each text, by one call: most of a short one's time is the call's."""
    rows = tokenizer(list(texts))["input_ids"]
    return [_plain(tokenizer, text, row, True) for text, row in zip(texts, rows, strict=True)]


def _plain(tokenizer: "PreTrainedTokenizerBase", text: str, found: Sequence[int], special: bool) -> Tokens:
    ids = list(found)
    first, closing = tokenizer.bos_token_id, (tokenizer.eos_token, tokenizer.sep_token)
    while special and first is not None and ids[:2] == [first, first]:
        del ids[0]
    if special and ids:
        last = str(tokenizer.convert_ids_to_tokens(ids[-1]))
        if last in closing and not text.endswith(last):
            ids.pop()
    return tuple(ids)


def common(a: Tokens, b: Tokens) -> int:
    """How many tokens both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
