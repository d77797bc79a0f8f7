"""Where activated adapters begin to act."""

from collections.abc import Sequence
from dataclasses import replace

from twinpass.core import Tokens
from twinpass.errors import DataError
from twinpass.task.example import Example


def common_suffix(examples: Sequence[Example]) -> Tokens:
    """The tokens of the task's suffix, which have to be the same in all examples.

    Line breaks before it may become tokens together with it in some rows: it is what all have.

    Raises:
        DataError: there is no suffix, or it makes other tokens of a row because it melts into the row's text.
    """
    if not examples:
        return ()
    shortest = min(examples, key=lambda example: len(example.prompt) - example.suffix_start)
    suffix = shortest.prompt[shortest.suffix_start :]
    if not suffix:
        raise DataError(
            "activated adapters act from the task's suffix on, and there is none, or it becomes no tokens of its own: "
            'set task.suffix, such as "Sentiment:", or trainable.invocation'
        )
    for example in examples:
        if (own := example.prompt[example.suffix_start :])[-len(suffix) :] != suffix:
            raise DataError(
                f"{example.place}: the suffix becomes tokens {list(own)} here and {list(suffix)} in {shortest.place}: it "
                "melts into the text before it, or holds fields; end task.prompt with a line break, and keep fields in it, "
                'or train trainable.kind = "lora", which acts everywhere'
            )
    return suffix


def last_token(examples: Sequence[Example]) -> Tokens:
    """The token that every prompt ends with, as a sequence of one.

    Raises:
        DataError: they end with different ones.
    """
    if not examples:
        return ()
    last = examples[0].prompt[-1:]
    for example in examples:
        if example.prompt[-1:] != last:
            raise DataError(
                f"{example.place}: the prompt ends with token {example.prompt[-1]} here and with {last[0]} in {examples[0].place}, and adapters "
                'act from the last one on: let task.suffix end all prompts alike, such as "Answer:", set trainable.invocation, or '
                'train trainable.kind = "lora", which acts everywhere'
            )
    return last


def activation_points(examples: Sequence[Example], invocation: Tokens) -> list[Example]:
    """The examples with ``suffix_start`` at the last place where ``invocation`` stands in the prompt.

    Raises:
        DataError: a row's prompt does not hold it.
    """
    return [replace(example, suffix_start=_last(example, invocation)) for example in examples]


def _last(example: Example, invocation: Tokens) -> int:
    for start in range(len(example.prompt) - len(invocation), -1, -1):
        if example.prompt[start : start + len(invocation)] == invocation:
            return start
    raise DataError(f"{example.place}: trainable.invocation {list(invocation)} does not stand in the prompt's tokens")
