"""The page of tasks by name: every name with its prompt, answers and files as they are."""

import re

import pytest
from pages import text_of

from twinpass.config.named import NAMED, TaskByName
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.fields import is_path

PAGE = text_of("docs/tasks.md")
LINES = re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.MULTILINE)
FILES, PROMPTS = dict(LINES[: len(NAMED)]), dict(LINES[len(NAMED) :])


def test_the_page_has_every_name_twice() -> None:
    assert list(FILES) == list(PROMPTS) == list(NAMED)


@pytest.mark.parametrize("name", NAMED)
def test_a_line_says_what_the_task_does(name: str) -> None:
    task = TaskByName(name).named
    template = task.template
    prompt, answers = PROMPTS[name].rsplit(" | ", 1)
    if isinstance(template, ChoiceTemplate) and name != "copa":
        assert answers == ", ".join(option.strip() for option in template.options)
        assert all(f"`{label}`" in FILES[name] for label in (*template.labels[:1], *template.labels[-1:]))
    if template.syntax == "braces":
        assert prompt == "`" + (template.prompt + template.suffix).replace("\n", "⏎") + "`"
    assert all(f"`{field}`" in FILES[name] for field in template.fields if is_path(field))
    same = FILES[name].startswith("the same")
    for file in (*task.train_files, *task.eval_files):
        assert f"`{file}`" in (FILES["rte"] if same else FILES[name])
