"""Fill a prompt from a row and tokenise it together with its answers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import TYPE_CHECKING, Self

from pydantic.dataclasses import dataclass as settings

from twinpass.errors import DataError
from twinpass.settings import STRICT, Text
from twinpass.task.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Example:
    """A tokenised row: the prompt, its answers, the index of the right one, and where the suffix begins."""

    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    label: int
    suffix_start: int


@settings(frozen=True, config=STRICT)
class Template(ABC):
    """How a row becomes text: ``prompt`` filled from its fields, then ``suffix``, then an answer."""

    prompt: Text
    suffix: str = ""

    def __post_init__(self) -> None:
        fields_of("prompt", self.prompt)

    @abstractmethod
    def answers(self, row: Row) -> tuple[Sequence[str], int]:
        """The answers to choose from, or the one to give, and which is right.

        Raises:
            DataError: the row does not say.
        """

    def closing(self, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
        """Tokens that follow every answer."""
        return ()

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the row fields that the prompt uses."""
        return fields_of("prompt", self.prompt)

    def with_shots(self, rows: Sequence[Row]) -> Self:
        """The same with solved rows in front of every prompt, a blank line after each.

        Raises:
            DataError: a row lacks a field, or does not say what is right.
        """
        known = [(row, *self.answers(row)) for row in rows]
        solved = "".join(f"{self._fill(row)}{self.suffix}{answers[right]}\n\n" for row, answers, right in known)
        return replace(self, prompt=solved.replace("{", "{{").replace("}", "}}") + self.prompt)

    def encode(self, rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", window: int | None) -> list[Example]:
        """Tokenise all rows.

        Raises:
            DataError: a row lacks a field, does not say what is right, or does not fit the window.
        """
        return [self._encode(row, tokenizer, window) for row in rows]

    def _encode(self, row: Row, tokenizer: "PreTrainedTokenizerBase", window: int | None) -> Example:
        text = self._fill(row)
        before, whole = _ids(tokenizer, text), _ids(tokenizer, text + self.suffix)
        texts, right = self.answers(row)
        end = self.closing(tokenizer)
        answers = tuple(self._answer(row, tokenizer, text + self.suffix, whole, answer) + end for answer in texts)
        longest = len(whole) + max(len(answer) for answer in answers)
        if window is not None and longest > window:
            raise DataError(
                f"{row.place}: {longest} tokens, but the model's window holds {window}; shorten or drop the row"
            )
        return Example(whole, answers, right, _common(before, whole))

    def _fill(self, row: Row) -> str:
        values = {name: text_of(row, name, "prompt") for name in self.fields}
        if values and not any(value.strip() for value in values.values()):
            raise DataError(f"{row.place}: the prompt is empty, {' and '.join(values)} hold no text")
        return self.prompt.format_map(values)

    def _answer(
        self, row: Row, tokenizer: "PreTrainedTokenizerBase", context: str, ids: tuple[int, ...], answer: str
    ) -> tuple[int, ...]:
        joined = _ids(tokenizer, context + answer)
        if joined[: len(ids)] != ids or len(joined) == len(ids):
            raise DataError(
                f"{row.place}: the answer {answer!r:.40} melts into the last token of the prompt; begin it with a space or line break"
            )
        return joined[len(ids) :]


def fields_of(key: str, text: str) -> tuple[str, ...]:
    """Names of the row fields that a text with ``{name}`` in it uses.

    Raises:
        ValueError: it is written otherwise.
    """
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{key}: {error}; write fields as {{name}}, and literal braces doubled") from error
    for _, name, format_spec, conversion in parts:
        if name is not None and (not name.isidentifier() or format_spec or conversion):
            raise ValueError(f"{key}: fields are plain names such as {{text}}, not {{{name}}} with anything more")
    return tuple(name for _, name, _, _ in parts if name is not None)


def field_of(row: Row, name: str, user: str) -> object:
    """A field of the row that ``user``, a key of the task, names."""
    if name not in row.fields:
        raise DataError(f"{row.place}: the {user} uses {{{name}}}, the row has only {', '.join(row.fields)}")
    return row.fields[name]


def text_of(row: Row, name: str, user: str) -> str:
    """The same as text."""
    value = field_of(row, name, user)
    if value is None:
        raise DataError(
            f'{row.place}: the {user} uses {{{name}}}, which is null; write "" for no text, or drop the row'
        )
    return str(value)


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[int, ...]:
    ids = list(tokenizer(text)["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token)):
        ids.pop()
    return tuple(ids)


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
