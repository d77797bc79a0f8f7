"""How a row becomes text, and text with its answers becomes tokens."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic.dataclasses import dataclass as settings

from twinpass.core import Tokens
from twinpass.errors import DataError
from twinpass.settings import STRICT, NonEmpty
from twinpass.task.example import Asked, Example
from twinpass.task.limits import UNLIMITED, Limits
from twinpass.task.rows import Row
from twinpass.task.text import Syntax, Text, compiled, literal
from twinpass.task.tokens import common, ids_of_each

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Template(ABC):
    """Makes examples of rows; those of one that ``chooses`` have options, of which one is right."""

    chooses: ClassVar[bool] = False

    @abstractmethod
    def examples(self, row: Row, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Example]:
        """The examples of a row, however long.

        Raises:
            DataError: the row lacks a field, or does not say what is right.
        """

    @abstractmethod
    def asked(self, row: Row, tokenizer: "PreTrainedTokenizerBase") -> Asked:
        """What a model reads before it answers a row, which need not say what is right, however long.

        Raises:
            DataError: the row lacks a field.
        """

    def require_filled(self, row: Row) -> None:
        """Refuse a row that a model cannot be asked about, as far as that shows without a tokenizer.

        Raises:
            DataError: saying what it lacks.
        """
        return

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end an answer, where no token does."""
        return ()

    @abstractmethod
    def with_shots(self, rows: Sequence[Row]) -> Self:
        """The same with solved rows in front of every prompt, a blank line after each.

        Raises:
            DataError: a row lacks a field, or does not say what is right.
        """

    def encode(
        self, rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", limits: Limits = UNLIMITED
    ) -> list[Example]:
        """The examples of all rows.

        Raises:
            DataError: a row cannot be used, or does not fit.
        """
        return [limits.applied(example, tokenizer) for row in rows for example in self.examples(row, tokenizer)]


@settings(frozen=True, config=STRICT)
class TextTemplate(Template):
    """``prompt`` filled from a row's fields, then ``suffix``, then an answer. A row makes one example.

    ``syntax``: "braces" takes fields as ``{name}`` or ``{name.inside[0]}``, "jinja" is Jinja's (in a sandbox).
    """

    prompt: NonEmpty
    suffix: str = ""
    syntax: Syntax = "braces"

    def __post_init__(self) -> None:
        self._text("prompt", self.prompt)
        self._text("suffix", self.suffix)

    @abstractmethod
    def answers(self, row: Row) -> tuple[Sequence[str], int]:
        """The answers to choose from, or the one to give, and which is right.

        Raises:
            DataError: the row does not say.
        """

    def closing(self, tokenizer: "PreTrainedTokenizerBase") -> Tokens:
        """Tokens that follow every answer."""
        return ()

    def blamed(self, row: Row) -> str:
        """What is at fault where the answers of a row cannot be used."""
        return row.place

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the row fields that the prompt uses."""
        return self._text("prompt", self.prompt).fields

    def with_shots(self, rows: Sequence[Row]) -> Self:
        known = [(row, *self.answers(row)) for row in rows]
        solved = "".join(f"{''.join(self._fill(row))}{answers[right]}\n\n" for row, answers, right in known)
        return replace(self, prompt=literal(solved, self.syntax) + self.prompt)

    def require_filled(self, row: Row) -> None:
        self._fill(row)

    def examples(self, row: Row, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Example]:
        yield self._example(row, tokenizer, *self.answers(row))

    def _example(self, row: Row, tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], right: int) -> Example:
        text, suffix = self._fill(row)
        asked = text + suffix
        before, whole, *joined = ids_of_each(tokenizer, [text, asked, *(asked + answer for answer in texts)])
        end = self.closing(tokenizer)
        answers = tuple(_closed(_answer(row, whole, own, text), end) for text, own in zip(texts, joined, strict=True))
        _require_apart(self.blamed(row), tokenizer, texts, answers)
        return Example(whole, answers, right, common(before, whole), row.place)

    def asked(self, row: Row, tokenizer: "PreTrainedTokenizerBase") -> Asked:
        text, suffix = self._fill(row)
        before, whole = ids_of_each(tokenizer, [text, text + suffix])
        return Asked(whole, suffix_start=common(before, whole), place=row.place)

    def prompt_of(self, row: Row) -> str:
        """The prompt and the suffix of a row, which need not say what is right.

        Raises:
            DataError: the row lacks a field.
        """
        return "".join(self._fill(row))

    def _fill(self, row: Row) -> tuple[str, str]:
        prompt = self._text("prompt", self.prompt)
        if prompt.is_blank(row):
            raise DataError(f"{row.place}: the prompt is empty, there is no text in {' and '.join(prompt.fields)}")
        return prompt.fill(row), self._text("suffix", self.suffix).fill(row)

    def _text(self, key: str, text: str) -> Text:
        return compiled(key, text, self.syntax)


def _closed(answer: Tokens, end: Tokens) -> Tokens:
    """With the end behind it, unless the text has it already."""
    return answer if end and answer[-len(end) :] == end else answer + end


def _require_apart(
    blamed: str, tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], answers: Sequence[Tokens]
) -> None:
    """Refuse answers that are the same to a model; one may well begin with another.

    Raises:
        DataError: naming two, and their tokens.
    """
    first: dict[Tokens, str] = {}
    for text, tokens in zip(texts, answers, strict=True):
        if (other := first.setdefault(tokens, text)) != text:
            shown = [str(each) for each in tokenizer.convert_ids_to_tokens(list(tokens))]
            raise DataError(
                f"{blamed}: the tokenizer makes the same of {other!r:.40} and {text!r:.40}, tokens {list(tokens)!s:.60} ({shown!s:.60}), so that no "
                "model can tell them apart; use other words for one of them"
            )


def _answer(row: Row, asked: Tokens, joined: Tokens, answer: str) -> Tokens:
    if joined[: len(asked)] != asked or len(joined) == len(asked):
        raise DataError(
            f"{row.place}: the answer {answer!r:.40} melts into the last token of the prompt; begin it with a space or line break"
        )
    return joined[len(asked) :]
