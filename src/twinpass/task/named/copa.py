"""SuperGLUE's COPA: which of two is the cause or the effect?"""

from pydantic.dataclasses import dataclass

from twinpass.settings import STRICT
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.named.base import NamedTask


def _in_a_sentence(field: str) -> str:
    """Its first word in lower case, but for "I"."""
    return f'{{% set word, space, rest = {field}.partition(" ") %}}{{{{ word if word == "I" else word | lower }}}}{{{{ space ~ rest }}}}'


@dataclass(frozen=True, config=STRICT)
class Copa(NamedTask):
    """Rows have ``premise``, ``choice1``, ``choice2``, ``question``: "cause" or "effect", and ``label``: 0 for the first."""

    train_files = ("train.jsonl",)
    eval_files = ("val.jsonl", "validation.jsonl")
    ends_alike = False

    @property
    def template(self) -> ChoiceTemplate:
        return ChoiceTemplate(
            prompt='{{ premise.rstrip().removesuffix(".") }}{{ {"effect": " so", "cause": " because"}[question] }}',
            options=tuple(" " + _in_a_sentence(choice) for choice in ("choice1", "choice2")),
            syntax="jinja",
        )
