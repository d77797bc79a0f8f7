"""SST-5: how good does a sentence of a review say that a film is, from 0 to 4?"""

import re
from collections.abc import Mapping

from pydantic.dataclasses import dataclass

from twinpass.settings import STRICT
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.named.base import LinesTask

LINE = re.compile(r"(?P<label>[0-4])\s+(?P<sentence>\S.*)")


@dataclass(frozen=True, config=STRICT)
class Sst5(LinesTask):
    """A line is a number and a sentence; rows have them as ``label`` and ``sentence``."""

    train_files = ("stsa.fine.train", "sentiment-train")
    eval_files = ("stsa.fine.dev", "sentiment-dev", "stsa.fine.test", "sentiment-test")
    example = "4 a fine film ."

    @property
    def template(self) -> ChoiceTemplate:
        return ChoiceTemplate(
            prompt="{{ sentence | trim }}",
            suffix=" It was",
            options=(" terrible", " bad", " okay", " good", " great"),
            labels=("0", "1", "2", "3", "4"),
            syntax="jinja",
        )

    def fields(self, line: str) -> Mapping[str, str] | None:
        found = LINE.fullmatch(line)
        return found and found.groupdict()
