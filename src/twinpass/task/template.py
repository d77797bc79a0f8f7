"""Fill a prompt from a row and tokenise it together with its answer options."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import Self

from pydantic.dataclasses import dataclass as settings
from transformers import PreTrainedTokenizerBase

from twinpass.errors import DataError
from twinpass.settings import STRICT, Text, Texts
from twinpass.task.rows import Row


@dataclass(frozen=True, slots=True)
class Example:
    """A tokenised row: the prompt, its answer options, the index of the right one, and where the suffix begins."""

    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    label: int
    suffix_start: int


@settings(frozen=True, config=STRICT)
class Template:
    """How a row becomes text: ``prompt`` filled from its fields, then ``suffix``, then one of ``options``.

    ``label`` names the field with the answer: an option's index, its text, or an entry of ``labels``, which
    names the options in their order.
    """

    prompt: Text
    options: Texts
    suffix: str = ""
    label: str = "label"
    labels: Texts = ()

    def __post_init__(self) -> None:
        try:
            parts = list(Formatter().parse(self.prompt))
        except ValueError as error:
            raise ValueError(f"prompt: {error}; write fields as {{name}}, and literal braces doubled") from error
        for _, name, format_spec, conversion in parts:
            if name is not None and (not name.isidentifier() or format_spec or conversion):
                raise ValueError(f"prompt: fields are plain names such as {{text}}, not {{{name}}} with anything more")
        if len(self.options) < 2:
            raise ValueError(f"options: expected at least two answers to choose from, got {list(self.options)}")
        if len(set(self.options)) < len(self.options) or not all(self.options):
            raise ValueError(f"options: they must be different and not empty, got {list(self.options)}")
        if self.labels and len(self.labels) != len(self.options):
            raise ValueError(f"labels: {len(self.labels)} names for {len(self.options)} options; give one for each")

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the row fields that the prompt uses."""
        return tuple(name for _, name, _, _ in Formatter().parse(self.prompt) if name is not None)

    def with_shots(self, rows: Sequence[Row]) -> Self:
        """The same with solved rows in front of every prompt, a blank line after each.

        Raises:
            DataError: a row lacks a field, or its label is none of the options.
        """
        solved = "".join(f"{self._fill(row)}{self.suffix}{self.options[self._label(row)]}\n\n" for row in rows)
        return replace(self, prompt=solved.replace("{", "{{").replace("}", "}}") + self.prompt)

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, window: int | None) -> list[Example]:
        """Tokenise all rows.

        Raises:
            DataError: a row lacks a field, its label is none of the options, or it does not fit the window.
        """
        return [self._encode(row, tokenizer, window) for row in rows]

    def _encode(self, row: Row, tokenizer: PreTrainedTokenizerBase, window: int | None) -> Example:
        text = self._fill(row)
        before, whole = _ids(tokenizer, text), _ids(tokenizer, text + self.suffix)
        options = tuple(self._option(row, tokenizer, text + self.suffix, whole, option) for option in self.options)
        longest = len(whole) + max(len(option) for option in options)
        if window is not None and longest > window:
            raise DataError(
                f"{row.place}: {longest} tokens, but the model's window holds {window}; shorten or drop the row"
            )
        return Example(whole, options, self._label(row), _common(before, whole))

    def _fill(self, row: Row) -> str:
        values = {name: self._text(row, name) for name in self.fields}
        if values and not any(value.strip() for value in values.values()):
            raise DataError(f"{row.place}: the prompt is empty, {' and '.join(values)} hold no text")
        return self.prompt.format_map(values)

    def _field(self, row: Row, name: str) -> object:
        if name not in row.fields:
            raise DataError(f"{row.place}: the prompt uses {{{name}}}, the row has only {', '.join(row.fields)}")
        return row.fields[name]

    def _text(self, row: Row, name: str) -> str:
        value = self._field(row, name)
        if value is None:
            raise DataError(
                f'{row.place}: the prompt uses {{{name}}}, which is null; write "" for no text, or drop the row'
            )
        return str(value)

    def _option(
        self, row: Row, tokenizer: PreTrainedTokenizerBase, context: str, ids: tuple[int, ...], option: str
    ) -> tuple[int, ...]:
        joined = _ids(tokenizer, context + option)
        if joined[: len(ids)] != ids or len(joined) == len(ids):
            raise DataError(
                f"{row.place}: option {option!r} melts into the last token of the prompt; begin it with a space or line break"
            )
        return joined[len(ids) :]

    def _label(self, row: Row) -> int:
        value = self._field(row, self.label)
        stripped = tuple(option.strip() for option in self.options)
        indices = tuple(str(i) for i in range(len(self.options)))
        for names in (self.labels, self.options, stripped, indices):
            if value in names:
                return names.index(str(value))
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(self.options):
            return value
        known = list(self.labels or self.options)
        raise DataError(f"{row.place}: {self.label} is {value!r:.40}, expected 0 to {len(known) - 1} or one of {known}")


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    ids = list(tokenizer(text)["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token)):
        ids.pop()
    return tuple(ids)


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
