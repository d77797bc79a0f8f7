"""SuperGLUE's MultiRC: is this an answer to a question about a paragraph?"""

from collections.abc import Iterator

from pydantic.dataclasses import dataclass

from twinpass.settings import STRICT
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.named.base import NamedTask
from twinpass.task.named.nested import objects
from twinpass.task.rows import Item, Row


@dataclass(frozen=True, config=STRICT)
class MultiRc(NamedTask):
    """Rows have ``paragraph``, ``question``, ``answer``, and ``label``: 1 if it is one. A ``passage`` of the original holds many."""

    train_files = ("train.jsonl",)
    eval_files = ("val.jsonl", "validation.jsonl")

    @property
    def template(self) -> ChoiceTemplate:
        return ChoiceTemplate(
            prompt='{paragraph}\nQuestion: {question}\nI found this answer "{answer}".',
            suffix=" Is that correct? Yes or No?\n",
            options=("No", "Yes"),
        )

    def within(self, row: Row) -> Iterator[Item]:
        if "passage" not in row.fields:
            yield row
            return
        for passage in objects(row, "passage"):
            for question in objects(passage, "questions"):
                for answer in objects(question, "answers"):
                    fields = {
                        "paragraph": passage.fields.get("text"),
                        "question": question.fields.get("question"),
                        "answer": answer.fields.get("text"),
                    }
                    label = {key: answer.fields[key] for key in ("label",) if key in answer.fields}
                    yield Row({**fields, **label}, answer.place)
