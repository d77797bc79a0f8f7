"""AG News: what is a piece of news about?"""

from pathlib import Path

from pydantic.dataclasses import dataclass

from twinpass.settings import STRICT
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.named.base import NamedTask
from twinpass.task.sources.read import Reader, reader_of
from twinpass.task.sources.table import read_csv


@dataclass(frozen=True, config=STRICT)
class AgNews(NamedTask):
    """A line is a class from 1 to 4, a title and a description; rows have them as ``Class Index``, ``Title`` and ``Description``."""

    train_files = ("train.csv",)
    eval_files = ("test.csv",)

    @property
    def template(self) -> ChoiceTemplate:
        return ChoiceTemplate(
            prompt="{Title}\n{Description}\n",
            suffix="Topic:",
            options=(" world", " sports", " business", " technology"),
            label="Class Index",
            labels=("1", "2", "3", "4"),
        )

    def reader(self, path: Path) -> Reader:
        if path.suffix == ".csv":
            return lambda path: read_csv(path, ("Class Index", "Title", "Description"))
        return reader_of(path)
