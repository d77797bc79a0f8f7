"""SuperGLUE's RTE: does a text say that a sentence is true?"""

from pydantic.dataclasses import dataclass

from twinpass.settings import STRICT
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.named.base import NamedTask


@dataclass(frozen=True, config=STRICT)
class Rte(NamedTask):
    """Rows have ``premise``, ``hypothesis``, and ``label``: "entailment" or "not_entailment"."""

    train_files = ("train.jsonl",)
    eval_files = ("val.jsonl", "validation.jsonl")

    @property
    def template(self) -> ChoiceTemplate:
        return ChoiceTemplate(
            prompt='{premise}\nDoes this mean that "{hypothesis}"',
            suffix=" is true? Yes or No?\n",
            options=("Yes", "No"),
            labels=("entailment", "not_entailment"),
        )
