"""SST-2: does a sentence of a review say that a film is good?"""

from pathlib import Path

from pydantic.dataclasses import dataclass

from twinpass.settings import STRICT
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.named.base import NamedTask
from twinpass.task.sources.read import Reader, reader_of
from twinpass.task.sources.table import read_tsv


@dataclass(frozen=True, config=STRICT)
class Sst2(NamedTask):
    """A line is a sentence and 0 or 1, with a tab between; rows have them as ``sentence`` and ``label``. A header is known by the first."""

    train_files = ("train.tsv",)
    eval_files = ("dev.tsv",)

    @property
    def template(self) -> ChoiceTemplate:
        return ChoiceTemplate(
            prompt="{{ sentence | trim }}",
            suffix=" It was",
            options=(" terrible", " great"),
            labels=("0", "1"),
            syntax="jinja",
        )

    def reader(self, path: Path) -> Reader:
        if path.suffix == ".tsv":
            return lambda path: read_tsv(path, ("sentence", "label"))
        return reader_of(path)
