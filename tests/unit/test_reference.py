"""The page of configuration keys is what the settings declare."""

from dataclasses import fields
from pathlib import Path

import pytest

from twinpass.config.reference import page
from twinpass.config.schema import SECTIONS

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page(), "make reference writes it again"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_kind_and_key_has_its_place(section: str) -> None:
    text = page().split(f"## [{section}]\n")[1].split("\n## [")[0]
    for kind in SECTIONS[section].kinds:
        own = text.split(f'= "{kind}"\n')[1].split("\n### ")[0] if kind else text
        for field in fields(SECTIONS[section].kinds[kind]):
            assert f"| `{field.name}` |" in own
