"""SuperGLUE's WiC: does a word mean the same in two sentences?"""

from pydantic.dataclasses import dataclass

from twinpass.settings import STRICT
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.named.base import NamedTask


@dataclass(frozen=True, config=STRICT)
class Wic(NamedTask):
    """Rows have ``word``, ``sentence1``, ``sentence2``, and ``label``: true or false."""

    train_files = ("train.jsonl",)
    eval_files = ("val.jsonl", "validation.jsonl")

    @property
    def template(self) -> ChoiceTemplate:
        return ChoiceTemplate(
            prompt='Does the word "{word}" have the same meaning in these two sentences? Yes, No?\n{sentence1}\n{sentence2}',
            suffix="\n",
            options=("No", "Yes"),
        )
