"""SuperGLUE's BoolQ: questions about a passage."""

from pydantic.dataclasses import dataclass

from twinpass.settings import STRICT
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.named.base import NamedTask


@dataclass(frozen=True, config=STRICT)
class BoolQ(NamedTask):
    """Rows have ``passage``, ``question`` in lower case and without its mark, and ``label``: true or false."""

    train_files = ("train.jsonl",)
    eval_files = ("val.jsonl", "validation.jsonl")

    @property
    def template(self) -> ChoiceTemplate:
        return ChoiceTemplate(
            prompt='{{ passage }} {{ question[:1] | upper }}{{ question[1:].removesuffix("?") }}?',
            suffix="\n",
            options=("No", "Yes"),
            syntax="jinja",
        )
