"""Where activated adapters begin to act."""

from collections.abc import Sequence
from dataclasses import replace

from twinpass.core import Tokens
from twinpass.errors import DataError
from twinpass.task.rows import Row
from twinpass.task.template import Example


def common_suffix(examples: Sequence[Example], rows: Sequence[Row]) -> Tokens:
    """The tokens of the task's suffix, which have to be the same in all examples.

    Raises:
        DataError: there is no suffix, or it makes other tokens of a row because it melts into the row's text.
    """
    if not examples:
        return ()
    suffix = examples[0].prompt[examples[0].suffix_start :]
    if not suffix:
        raise DataError(
            "activated adapters act from the task's suffix on, and there is none, or it becomes no tokens of its own: "
            'set task.suffix, such as "Sentiment:", or trainable.invocation'
        )
    for example, row in zip(examples, rows, strict=True):
        if (own := example.prompt[example.suffix_start :]) != suffix:
            raise DataError(
                f"{row.place}: the suffix becomes tokens {list(own)} here and {list(suffix)} in {rows[0].place}, as it "
                "melts into the text before it; end task.prompt with a line break"
            )
    return suffix


def activation_points(examples: Sequence[Example], rows: Sequence[Row], invocation: Tokens) -> list[Example]:
    """The examples with ``suffix_start`` at the last place where ``invocation`` stands in the prompt.

    Raises:
        DataError: a row's prompt does not hold it.
    """
    return [
        replace(example, suffix_start=_last(example.prompt, invocation, row))
        for example, row in zip(examples, rows, strict=True)
    ]


def _last(prompt: Tokens, invocation: Tokens, row: Row) -> int:
    for start in range(len(prompt) - len(invocation), -1, -1):
        if prompt[start : start + len(invocation)] == invocation:
            return start
    raise DataError(f"{row.place}: trainable.invocation {list(invocation)} does not stand in the prompt's tokens")
