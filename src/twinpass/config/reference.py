"""The page of every configuration key, from the settings' own declarations: ``python -m twinpass.config.reference``."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from inspect import cleandoc, getdoc
from typing import Any, get_type_hints

from twinpass.config.schema import SECTIONS, Section
from twinpass.model.defaults import Defaults

HEAD = """\
# Every key of a configuration

Written by `make reference` from the settings' own declarations; a test holds it current. A key without a default has to be given;
*by kind* means what [suits what is trained](defaults.md).
"""


def page() -> str:
    """The whole page, as Markdown."""
    parts = [HEAD]
    for name, section in SECTIONS.items():
        parts.append(f"## [{name}]\n")
        if section.key is not None:
            default = _default(section)
            parts.append(f"`{section.key}` picks one of {_kinds(section)}; default: {default}.\n")
        shared = _shared(section)
        if shared and section.key is not None:
            parts.append(f"Keys of every {section.key}, where it says nothing else of them:\n\n{_plain(shared)}\n")
        for kind in section.kinds:
            title = f'### {section.key} = "{kind}"\n\n' if kind else ""
            parts.append(title + _kind(section, section.kinds[kind], shared))
    return "\n".join(parts)


def _shared(section: Section) -> str:
    """What is said of the keys that all kinds of a section inherit."""
    kinds = list(section.kinds.values())
    bases = [base for base in kinds[0].__mro__ if all(base in kind.__mro__ for kind in kinds[1:])] if kinds[1:] else []
    keys = {field.name for base in bases if is_dataclass(base) for field in fields(base)}
    return "\n\n".join(_naming(bases, keys))


def _naming(classes: Iterable[type], keys: set[str]) -> Iterator[str]:
    """Of the classes' docstrings, the first paragraph that says what a key means, for each of the keys."""
    for paragraph in (part for one in classes for part in cleandoc(one.__dict__.get("__doc__") or "").split("\n\n")):
        if _named(paragraph) & keys:
            yield paragraph
            keys = keys - _named(paragraph)


def _named(text: str) -> set[str]:
    arguments = re.findall(r"^    (\w+(?:, \w+)*): ", text, flags=re.M)
    return {*re.findall(r"``(\w+)``", text), *", ".join(arguments).split(", ")}


def _default(section: Section) -> str:
    if section.suited_kind is not None:
        return "by kind"
    if callable(section.default):
        return "what the section's keys and rows say"
    return "none" if section.default is None else _code(section.default)


def _kind(section: Section, kind: type[Any], shared: str) -> str:
    rows = list(_rows(section, kind))
    own = getdoc(kind) or ""
    keys = {field.name for field in fields(kind)} - _named(own) - _named(shared)
    text = _plain("\n\n".join([own, *_naming(kind.__mro__[1:], keys)]))
    return "\n".join([text, "", "| key | type | default |", "|---|---|---|", *rows, ""]) if rows else f"{text}\n"


def _rows(section: Section, kind: type[Any]) -> Iterator[str]:
    hints = get_type_hints(kind)
    suited = {
        key
        for key, name in section.suited.items()
        if name in Defaults.__annotations__ and getattr(Defaults, name, "") is not None
    }
    if getattr(kind, "scale_free", False):
        suited.discard("lr")
    for field in fields(kind):
        default: Any = field.default
        factory: Any = field.default_factory
        if default is MISSING and factory is not MISSING:
            default = factory()
        default = getattr(default, "default", default) if type(default).__name__ == "FieldInfo" else default
        shown = "by kind" if field.name in suited else "" if default is MISSING or _unset(default) else _code(default)
        yield f"| `{field.name}` | {_type(hints[field.name])} | {shown} |"


def _unset(default: Any) -> bool:
    return type(default).__name__ == "PydanticUndefinedType" or default is ...


def _type(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) else str(hint)
    text = re.sub(r"(?:typing|collections\.abc|twinpass(?:\.\w+)+)\.", "", text)
    return f"`{text}`".replace("|", "\\|")


def _code(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return "none" if value is None else f"`{value}`"


def _kinds(section: Section) -> str:
    return ", ".join(f"`{kind}`" for kind in section.kinds)


def _plain(text: str) -> str:
    """A docstring without its margin, as Markdown: references lose their roles, code its second backtick."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    text = re.sub(r"^Args:\n", "", text.replace("``", "`"), flags=re.M)
    text = re.sub(r"^    (\w+(?:, \w+)*): ", lambda found: f"- `{found[1].replace(', ', '`, `')}`: ", text, flags=re.M)
    return text.replace("\n        ", "\n  ")


if __name__ == "__main__":
    print(page(), end="")
