"""Texts with a row's fields in them: ``{name}`` in braces, or a Jinja template."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from string import Formatter
from typing import TYPE_CHECKING, Literal

from twinpass.errors import DataError
from twinpass.task.fields import as_text, is_path, plain, text_of
from twinpass.task.jinja import checked, environment_of_rows
from twinpass.task.rows import Row

if TYPE_CHECKING:
    from jinja2 import Template

Syntax = Literal["braces", "jinja"]

ROW = "row"
"""What Jinja templates call all fields, as in ``row["Review (text)"]``; a field of that name goes first."""


class Text(ABC):
    """A text that every row fills."""

    @property
    @abstractmethod
    def fields(self) -> tuple[str, ...]:
        """The names of the fields that it uses."""

    @property
    def tail(self) -> str:
        """What stands behind the last field, as far as it is the same for every row."""
        return ""

    @abstractmethod
    def fill(self, row: Row) -> str:
        """The text of this row.

        Raises:
            DataError: a field is missing or no text.
        """

    @abstractmethod
    def is_blank(self, row: Row) -> bool:
        """Whether the fields that it uses hold no text."""


@dataclass(frozen=True)
class Braces(Text):
    """``key`` names the setting; ``parts`` are a literal each, and the path of a field after it (None: nothing)."""

    key: str
    parts: Sequence[tuple[str, str | None]]

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(path for _, path in self.parts if path is not None))

    @property
    def tail(self) -> str:
        return "".join(literal for literal, path in self.parts[-1:] if path is None)

    def fill(self, row: Row) -> str:
        return "".join(literal + ("" if path is None else text_of(row, path, self.key)) for literal, path in self.parts)

    def is_blank(self, row: Row) -> bool:
        return bool(self.fields) and not any(text_of(row, path, self.key).strip() for path in self.fields)


@dataclass(frozen=True)
class Jinja(Text):
    """A template in a sandbox: it sees the row's fields, and can change nothing."""

    key: str
    template: "Template"
    names: tuple[str, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        return self.names

    def fill(self, row: Row) -> str:
        try:
            known = {name: plain(each) if isinstance(each, bytes) else each for name, each in row.fields.items()}
            return as_text(self.template.render({ROW: known, **known}))
        except DataError:
            raise
        except Exception as error:  # whatever a template does with a row's values
            raise DataError(f"{row.place}: the {self.key} cannot be filled from this row: {error}") from error

    def is_blank(self, row: Row) -> bool:
        return bool(self.fields) and not self.fill(row).strip()


@cache
def compiled(key: str, text: str, syntax: Syntax) -> Text:
    """A text with fields in it.

    Raises:
        ValueError: it is written otherwise.
    """
    return _jinja(key, text) if syntax == "jinja" else _braces(key, text)


def literal(text: str, syntax: Syntax) -> str:
    """How ``text`` is written where braces have a meaning."""
    if syntax == "jinja":
        return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""
    return text.replace("{", "{{").replace("}", "}}")


def _braces(key: str, text: str) -> Braces:
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{key}: {error}; write fields as {{name}}, and literal braces doubled") from error
    for _, path, form, conversion in parts:
        if path is not None and (not is_path(path) or form or conversion):
            raise ValueError(
                f"{key}: fields are plain names such as {{text}}, or {{target.span[0]}} inside of one, not {{{path}}} with "
                'anything more; syntax = "jinja" takes expressions, and any name, as {{ row["Price ($)"] }}'
            )
    return Braces(key, [(before, path) for before, path, _, _ in parts])


def _jinja(key: str, text: str) -> Jinja:
    from jinja2 import TemplateError, TemplateSyntaxError, meta

    environment = environment_of_rows()
    try:
        tree = environment.parse(text)
        names = meta.find_undeclared_variables(tree)
        return Jinja(key, environment.from_string(checked(tree)), tuple(sorted(names)))
    except TemplateSyntaxError as error:
        raise ValueError(f"{key}: not a Jinja template, line {error.lineno}: {error.message}") from error
    except TemplateError as error:
        raise ValueError(f"{key}: not a Jinja template: {error}") from error
