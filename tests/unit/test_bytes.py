"""Bytes that are text in UTF-8, as columns of Parquet files hold them, are that text wherever a row becomes one."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from twinpass.errors import DataError
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.forms import recognised
from twinpass.task.rows import Row
from twinpass.task.sources.read import read_rows
from twinpass.task.template import Template

BYTES = {"text": [b"fine", b"dull"], "label": [b"good", b"bad"]}
WORDS = {"text": ["fine", "dull"], "label": ["good", "bad"]}
OPTIONS = (" bad", " good")
TEMPLATES = [
    ChoiceTemplate(prompt="Review: {text}", options=OPTIONS),
    ChoiceTemplate(prompt="Review: {{ text }}", options=OPTIONS, syntax="jinja"),
    ChoiceTemplate(prompt="Review: {{ text | trim }}", options=OPTIONS, syntax="jinja"),
    ChoiceTemplate(prompt="Review: {{ row.text ~ '' }}", options=OPTIONS, syntax="jinja"),
    ChoiceTemplate(
        prompt="Review: {% if text == 'fine' %}a{% endif %} {{ [text] | join }}", options=OPTIONS, syntax="jinja"
    ),
]


def rows(folder: Path, columns: dict[str, Any]) -> list[Row]:
    path = folder / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    return read_rows(path)


@pytest.mark.parametrize("template", TEMPLATES)
def test_they_are_prompts_and_labels(tmp_path: Path, template: Template) -> None:
    found, expected = (template.encode(rows(tmp_path, own), tiny.tokenizer()) for own in (BYTES, WORDS))
    assert found == expected
    assert [each.label for each in found] == [1, 0]


def test_they_have_a_form(tmp_path: Path) -> None:
    assert recognised(rows(tmp_path, BYTES), {}) == recognised(rows(tmp_path, WORDS), {})
    columns = {"instruction": [b"fine"], "output": [b"dull"]}
    assert recognised(rows(tmp_path, columns), {})[0] == "instruction, input, output"


@pytest.mark.parametrize("template", TEMPLATES)
def test_other_bytes_are_none(tmp_path: Path, template: Template) -> None:
    with pytest.raises(DataError, match=r"row 1: .* holds bytes that are no text in UTF-8; decode them"):
        template.encode(rows(tmp_path, {**BYTES, "text": [b"\xff", b"\xfe"]}), tiny.tokenizer())
