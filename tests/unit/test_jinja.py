"""Jinja templates of rows: what is no text becomes none on the way through filters and ``~``."""

from typing import Any

import pytest

from twinpass.errors import DataError
from twinpass.task.completion import CompletionTemplate
from twinpass.task.rows import Row

NO_TEXTS: list[tuple[Any, str]] = [(None, "null"), (["a"], "a list"), ({"a": 1}, "an object"), (float("nan"), "nan")]


def filled(prompt: str, **fields: Any) -> str:
    template = CompletionTemplate(prompt="{{ n }}" + prompt, completion="{{ n }}", syntax="jinja")
    return template.prompt_of(Row({"n": 1, **fields}, "row 1"))


@pytest.mark.parametrize(
    ("prompt", "written"),
    [
        ("{{ text | lower }}", "1fine"),
        ("{{ text | trim | upper }}", "1FINE"),
        ("{{ text ~ '!' }}", "1Fine!"),
        ("{{ 'a ' ~ text }}", "1a Fine"),
        ("{{ text | replace('F', 'w') }}", "1wine"),
        ("{{ '%s, %s' | format(n, text) }}", "11, Fine"),
        ("{{ text | string }}", "1Fine"),
        ("{{ [n, text] | join(', ') }}", "11, Fine"),
    ],
)
@pytest.mark.parametrize(("value", "kind"), NO_TEXTS)
def test_what_is_no_text_is_refused(prompt: str, written: str, value: Any, kind: str) -> None:
    assert filled(prompt, text="Fine") == written
    with pytest.raises(DataError, match=f"^row 1: the prompt cannot be filled from this row: what it writes is {kind}"):
        filled(prompt, text=value)


def test_what_a_template_asks_of_values_stays_possible() -> None:
    assert filled("{{ flag | lower }}", flag=True) == "1true"
    assert filled("{{ text | default('-', true) }}", text=None) == "1-"
    assert filled("{% if text is none %}none{% endif %}", text=None) == "1none"
    assert filled("{{ words | join(' ') }}", words=["a", "b"]) == "1a b"
    assert filled("{{ words | join(' ', attribute='x') }}", words=[{"x": "a"}, {"x": "b"}]) == "1a b"
    assert filled("{{ words | tojson }}", words=["a"]) == '1["a"]'
    assert filled("{{ words | length }}", words=["a"]) == "11"


def test_a_field_of_any_name() -> None:
    assert filled('{{ row["Price ($)"] }}', **{"Price ($)": 5}) == "15"
    assert filled("{{ row }}", row="a") == "1a"
    with pytest.raises(DataError, match=r"row 1: .* has no attribute 'x'"):
        filled("{{ row.x }}")
