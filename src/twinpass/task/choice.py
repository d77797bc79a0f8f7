"""Rows with one right answer among options."""

from collections.abc import Sequence
from dataclasses import field
from typing import TYPE_CHECKING, ClassVar

from pydantic.dataclasses import dataclass as settings

from twinpass.errors import DataError
from twinpass.settings import STRICT, Names, Strings
from twinpass.task.example import Example
from twinpass.task.fields import value_of
from twinpass.task.labels import option_of, takes_indices
from twinpass.task.rows import Row
from twinpass.task.template import TextTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@settings(frozen=True, config=STRICT)
class ChoiceTemplate(TextTemplate):
    """The answer is one of ``options``, which may hold fields too, such as " {choice1}".

    ``label`` names the field with the answer: an entry of ``labels``, which names the options in their order; an option's
    text; or, where neither is written as a number, an option's index. True and false are the options (or labels) "true" and "false",
    "yes" and "no", otherwise 1 and 0.
    """

    chooses: ClassVar[bool] = True

    options: Strings = field(kw_only=True)
    label: str = "label"
    labels: Names = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in self.options:
            self._text("options", option)
        if len(self.options) < 2:
            raise ValueError(f"options: expected at least two answers to choose from, got {list(self.options)}")
        if len(set(self.options)) < len(self.options) or not all(self.options):
            raise ValueError(f"options: they must be different and not empty, got {list(self.options)}")
        if self.labels and len(self.labels) != len(self.options):
            raise ValueError(f"labels: {len(self.labels)} names for {len(self.options)} options; give one for each")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels: they must be different, got {list(self.labels)}")

    def answers(self, row: Row) -> tuple[Sequence[str], int]:
        options = self._filled(row)
        return options, self._right(row, options)

    def question(self, row: Row, tokenizer: "PreTrainedTokenizerBase") -> Example:
        """The example of a row that need not say what is right; its label means nothing.

        Raises:
            DataError: the row lacks a field of the prompt or the options.
        """
        return self._example(row, tokenizer, self._filled(row), 0)

    def require_filled(self, row: Row) -> None:
        super().require_filled(row)
        self._filled(row)

    def blamed(self, row: Row) -> str:
        return row.place if any(self._text("options", option).fields for option in self.options) else "task.options"

    def names(self, row: Row) -> tuple[str, ...]:
        """What the options are called: ``labels``, or the options themselves."""
        return self.labels or _short(self._filled(row))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The same for all rows at once: fields within options stay as they are written."""
        return self.labels or _short(self.options)

    def _filled(self, row: Row) -> list[str]:
        texts = [self._text("options", option) for option in self.options]
        for text in texts:
            if text.is_blank(row):
                raise DataError(f"{row.place}: an option is empty, there is no text in {' and '.join(text.fields)}")
        options = [text.fill(row) for text in texts]
        if len(set(options)) < len(options):
            raise DataError(f"{row.place}: two options are the same, {options}; drop the row")
        return options

    def _right(self, row: Row, options: Sequence[str]) -> int:
        try:
            value = value_of(row, self.label, "task")
        except DataError as error:
            raise DataError(f"{error}; to train and to measure, rows have to say what is right") from error
        found = option_of(value, self.labels, options)
        if found is None:
            indices = f"0 to {len(options) - 1} or " if takes_indices(self.labels, options) else ""
            raise DataError(
                f"{row.place}: {self.label} is {value!r:.40}, expected {indices}one of {list(self.labels or options)}"
            )
        return found


def _short(options: Sequence[str]) -> tuple[str, ...]:
    """Options without the blanks around them, where they still differ."""
    short = tuple(option.strip() for option in options)
    return short if len(set(short)) == len(short) else tuple(options)
