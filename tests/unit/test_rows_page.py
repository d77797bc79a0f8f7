"""The page about rows: its configurations load, and the forms it names are those that are known."""

import re
import tomllib
from pathlib import Path

import pytest

from twinpass.config.schema import SECTIONS
from twinpass.config.tasks import TaskSettings, kind_of
from twinpass.task.forms import FORMS
from twinpass.task.sources.read import FILES

PAGE = (Path(__file__).parents[2] / "docs/rows.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_configurations_on_the_page_are_valid(block: str) -> None:
    keys = tomllib.loads(block)["task"]
    task = SECTIONS["task"].kinds[kind_of(keys)](**keys)
    assert isinstance(task, TaskSettings)
    assert task.problems() == []


def test_the_page_names_every_form_and_every_kind_of_file() -> None:
    assert len(BLOCKS) == 3
    for form in FORMS:
        assert all(f"`{name}`" in PAGE for name in form.fields)
    assert all(f"`rows{ending}`" in PAGE for ending in FILES)
