"""Rows that are prompts: what continues them is judged by functions, not held against an answer."""

from collections.abc import Iterator, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any, Self

from pydantic.dataclasses import dataclass as settings

from twinpass.errors import DataError
from twinpass.settings import STRICT, NonEmpty
from twinpass.task.chat import ChatTemplate
from twinpass.task.example import Asked, Example
from twinpass.task.messages import is_conversation
from twinpass.task.rows import Row
from twinpass.task.template import TextTemplate
from twinpass.task.tokens import common, ids_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMN = "prompt"
"""The column that prompts are in, where nothing else is said."""


@settings(frozen=True, config=STRICT)
class RewardTemplate(TextTemplate):
    """``prompt`` filled from a row's fields, by default its column ``prompt``, then ``suffix``; the model writes what follows.

    A column ``prompt`` with messages is written by the tokenizer's chat template, up to where the assistant's turn begins;
    ``chat_template_kwargs`` go to it. Reward functions are given every other column. Activated adapters act from the prompt's last
    token on, or from where the suffix begins.
    """

    prompt: NonEmpty = "{prompt}"
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    def answers(self, row: Row) -> tuple[Sequence[str], int]:
        raise DataError(f"{row.place}: the rows of this task are prompts, and have no answers")

    def with_shots(self, rows: Sequence[Row]) -> Self:
        raise DataError("task.shots: prompts are not solved; write demonstrations into task.prompt, or leave shots out")

    def require_filled(self, row: Row) -> None:
        if not is_conversation(row.fields.get(COLUMN)) or self.prompt != type(self).prompt:
            super().require_filled(row)

    def examples(self, row: Row, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Example]:
        yield self.asked(row, tokenizer)

    def asked(self, row: Row, tokenizer: "PreTrainedTokenizerBase") -> Asked:
        columns = {name: value for name, value in row.fields.items() if name != COLUMN}
        shown, ids, start = self._read(row, tokenizer)
        return Asked(ids, place=row.place, suffix_start=start, shown=shown, columns=columns)

    def _read(self, row: Row, tokenizer: "PreTrainedTokenizerBase") -> tuple[Any, tuple[int, ...], int]:
        """What a reward is shown of the prompt, its tokens, and where an activated adapter begins to act."""
        messages = row.fields.get(COLUMN)
        if is_conversation(messages) and self.prompt == type(self).prompt:
            if self.suffix:
                raise DataError(f"{row.place}: the prompt is messages, which take no task.suffix; leave it out")
            ids = ChatTemplate(COLUMN, chat_template_kwargs=self.chat_template_kwargs).continued(row, tokenizer)
            return messages, ids, len(ids) - 1
        text, suffix = self._fill(row)
        ids = ids_of(tokenizer, text + suffix)
        if not ids:
            raise DataError(f"{row.place}: the prompt has no tokens; write some text, or drop the row")
        return text + suffix, ids, common(ids_of(tokenizer, text), ids) if suffix else len(ids) - 1


def completed(examples: Sequence[Example]) -> list[Example]:
    """The same, with every column that any prompt's row has: None where a row lacks it, as in a table."""
    names = dict.fromkeys(name for one in examples if isinstance(one, Asked) for name in one.columns)
    return [
        replace(one, columns={**dict.fromkeys(names), **one.columns})
        if isinstance(one, Asked) and len(one.columns) < len(names)
        else one
        for one in examples
    ]
