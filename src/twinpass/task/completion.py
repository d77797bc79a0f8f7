"""Rows with a text to write: a summary, a translation, a reply."""

from collections.abc import Sequence
from dataclasses import field
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass as settings

from twinpass.core import Tokens
from twinpass.errors import DataError
from twinpass.settings import STRICT, NonEmpty
from twinpass.task.rows import Row
from twinpass.task.template import TextTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@settings(frozen=True, config=STRICT)
class CompletionTemplate(TextTemplate):
    """The answer is ``completion``, filled from the row's fields, such as " {summary}".

    With ``end`` the tokenizer's end-of-text token follows, so that a trained model learns where to stop.
    """

    completion: NonEmpty = field(kw_only=True)
    end: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self._text("completion", self.completion).fields:
            raise ValueError(
                f"completion: {self.completion!r} is the same for every row; name a field, such as {{summary}}"
            )

    def answers(self, row: Row) -> tuple[Sequence[str], int]:
        text = self._text("completion", self.completion)
        if text.is_blank(row):
            raise DataError(
                f"{row.place}: the completion is empty, there is no text in {' and '.join(text.fields)}; drop the row"
            )
        return (text.fill(row),), 0

    @property
    def stop(self) -> tuple[str, ...]:
        tail = self._text("completion", self.completion).tail
        return (tail,) if tail and not self.end else ()

    def closing(self, tokenizer: "PreTrainedTokenizerBase") -> Tokens:
        return closing(tokenizer) if self.end else ()


def closing(tokenizer: "PreTrainedTokenizerBase") -> Tokens:
    """The tokenizer's end of a text.

    Raises:
        DataError: it has none.
    """
    if not isinstance(tokenizer.eos_token_id, int):
        raise DataError("the tokenizer has no end-of-text token; set task.end = false")
    return (tokenizer.eos_token_id,)
