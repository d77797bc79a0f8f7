"""SQuAD: write what answers a question about a paragraph."""

from collections.abc import Iterator

from pydantic.dataclasses import dataclass

from twinpass.settings import STRICT
from twinpass.task.completion import CompletionTemplate
from twinpass.task.named.base import NamedTask
from twinpass.task.named.nested import objects
from twinpass.task.rows import Item, Row


@dataclass(frozen=True, config=STRICT)
class Squad(NamedTask):
    """Rows have ``title``, ``context``, ``question``, and ``answers`` with their ``text``, the first of which is learned. An article of the original holds many."""

    train_files = ("train-v1.1.json", "train.json")
    eval_files = ("dev-v1.1.json", "dev.json")

    @property
    def template(self) -> CompletionTemplate:
        return CompletionTemplate(
            prompt="Title: {title}\nContext: {context}\nQuestion: {question}\n",
            suffix="Answer:",
            completion=" {answers.text[0]}\n",
            end=False,
        )

    def within(self, row: Row) -> Iterator[Item]:
        for each in _questions(row) if "paragraphs" in row.fields else [row]:
            question = each.fields.get("question")
            asked = question.strip() if isinstance(question, str) else question
            yield Row({**each.fields, "question": asked}, each.place)


def _questions(article: Row) -> Iterator[Row]:
    for paragraph in objects(article, "paragraphs"):
        for question in objects(paragraph, "qas"):
            fields = {"title": article.fields.get("title"), "context": paragraph.fields.get("context")}
            if "answers" in question.fields:
                question.fields["answers"] = {
                    "text": [answer.fields.get("text") for answer in objects(question, "answers")]
                }
            yield Row({**question.fields, **fields}, question.place)
