"""The page about rows: the forms it names are those that are known."""

from pages import text_of

from twinpass.task.forms import FORMS
from twinpass.task.sources.read import FILES

PAGE = text_of("docs/rows.md")


def test_the_page_names_every_form_and_every_kind_of_file() -> None:
    for form in FORMS:
        assert all(f"`{name}`" in PAGE for name in form.fields)
    assert all(f"`rows{ending}`" in PAGE for ending in FILES)
