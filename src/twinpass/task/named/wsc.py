"""SuperGLUE's WSC, the Winograd schema challenge: what does a pronoun mean?"""

from collections.abc import Iterator, Mapping

from pydantic.dataclasses import dataclass

from twinpass.settings import STRICT
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.named.base import NamedTask
from twinpass.task.rows import Item, Row


@dataclass(frozen=True, config=STRICT)
class Wsc(NamedTask):
    """Rows have ``text``, ``span1_text`` (what may be meant), ``span2_text`` (the pronoun), in ``target`` or beside it, and ``label``: true or false."""

    train_files = ("train.jsonl",)
    eval_files = ("val.jsonl", "validation.jsonl")

    @property
    def template(self) -> ChoiceTemplate:
        return ChoiceTemplate(
            prompt='{{ text }}\nIn the previous sentence, does the pronoun "{{ span2_text | lower }}" refer to {{ span1_text }}?',
            suffix=" Yes or No?\n",
            options=("No", "Yes"),
            syntax="jinja",
        )

    def within(self, row: Row) -> Iterator[Item]:
        target = row.fields.get("target")
        yield Row({**row.fields, **target}, row.place) if isinstance(target, Mapping) else row
