"""The pages of configuration keys and of commands are what these declare."""

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from twinpass.cli import reference
from twinpass.config.reference import page
from twinpass.config.schema import SECTIONS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("name", "written"), [("reference.md", page), ("commands.md", reference.page)])
def test_the_page_is_current(name: str, written: Callable[[], str]) -> None:
    assert (DOCS / name).read_text() == written(), "make reference writes it again"


@pytest.mark.parametrize("command", reference.commands())
def test_every_option_of_a_command_has_its_place_and_words(command: str) -> None:
    text = reference.page().split(f"## twinpass {command}\n")[1].split("\n## ")[0]
    cells = dict(line.strip("| ").split("` | ") for line in text.splitlines() if line.startswith("| `"))
    for action in reference.commands()[command]._actions:
        if action.dest != "help":
            shown = action.option_strings[0] if action.option_strings else str(action.metavar).replace("|", "\\|")
            (words,) = (words for cell, words in cells.items() if shown in re.split(r"[` \[\]]", cell))
            assert words


@pytest.mark.parametrize("section", SECTIONS)
def test_every_kind_and_key_has_its_place(section: str) -> None:
    text = page().split(f"## [{section}]\n")[1].split("\n## [")[0]
    for kind in SECTIONS[section].kinds:
        own = text.split(f'= "{kind}"\n')[1].split("\n### ")[0] if kind else text
        for field in fields(SECTIONS[section].kinds[kind]):
            assert f"| `{field.name}` |" in own


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_of_every_kind_is_explained_in_words(section: str) -> None:
    """Beside the table: where its kind stands, or once for all kinds of the section."""
    shared, *kinds = page().split(f"## [{section}]\n")[1].split("\n## [")[0].split("\n### ")
    if not kinds:
        kinds, shared = [shared], ""
    for text, kind in zip(kinds, SECTIONS[section].kinds.values(), strict=True):
        words = re.findall(r"`(\w+)`", re.sub(r"^\|.*$", "", shared + text, flags=re.M))
        assert not {field.name for field in fields(kind)} - set(words), (
            f"{kind.__name__}: say it in its docstring, or in that of a class it is of"
        )
