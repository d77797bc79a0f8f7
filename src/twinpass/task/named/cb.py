"""SuperGLUE's CB, CommitmentBank: does a text say that a sentence is true, or false, or neither?"""

from pydantic.dataclasses import dataclass

from twinpass.settings import STRICT
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.named.base import NamedTask


@dataclass(frozen=True, config=STRICT)
class Cb(NamedTask):
    """Rows have ``premise``, ``hypothesis``, and ``label``: "entailment", "contradiction" or "neutral"."""

    train_files = ("train.jsonl",)
    eval_files = ("val.jsonl", "validation.jsonl")

    @property
    def template(self) -> ChoiceTemplate:
        return ChoiceTemplate(
            prompt='Suppose {premise} Can we infer that "{hypothesis}"?',
            suffix=" Yes, No, or Maybe?\n",
            options=("Yes", "No", "Maybe"),
            labels=("entailment", "contradiction", "neutral"),
        )
