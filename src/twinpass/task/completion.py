"""Rows with a text to write: a summary, a translation, a reply."""

from collections.abc import Sequence
from dataclasses import field
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass as settings

from twinpass.errors import DataError
from twinpass.settings import STRICT, Text
from twinpass.task.rows import Row
from twinpass.task.template import Template, fields_of, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@settings(frozen=True, config=STRICT)
class CompletionTemplate(Template):
    """The answer is ``completion``, filled from the row's fields, such as " {summary}".

    With ``end`` the tokenizer's end-of-text token follows, so that a trained model learns where to stop.
    """

    completion: Text = field(kw_only=True)
    end: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not fields_of("completion", self.completion):
            raise ValueError(
                f"completion: {self.completion!r} is the same for every row; name a field, such as {{summary}}"
            )

    def answers(self, row: Row) -> tuple[Sequence[str], int]:
        values = {name: text_of(row, name, "completion") for name in fields_of("completion", self.completion)}
        if not any(value.strip() for value in values.values()):
            raise DataError(f"{row.place}: the completion is empty, {' and '.join(values)} hold no text; drop the row")
        return (self.completion.format_map(values),), 0

    def closing(self, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
        if not self.end:
            return ()
        if not isinstance(tokenizer.eos_token_id, int):
            raise DataError("the tokenizer has no end-of-text token; set task.end = false")
        return (tokenizer.eos_token_id,)
