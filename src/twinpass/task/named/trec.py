"""TREC: what kind of thing does a question ask for?"""

import re
from collections.abc import Mapping

from pydantic.dataclasses import dataclass

from twinpass.settings import STRICT
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.named.base import LinesTask

LINE = re.compile(r"(?P<coarse_label>[A-Z]+):(?P<fine_label>\w+) +(?P<text>\S.*)")


@dataclass(frozen=True, config=STRICT)
class Trec(LinesTask):
    """A line is a coarse label, a finer one, and the question; rows have them as ``coarse_label``, ``fine_label`` and ``text``."""

    train_files = ("train_5500.label", "train.txt")
    eval_files = ("TREC_10.label", "test.txt")
    example = "NUM:dist How far is it from Denver to Aspen ?"
    encodings = ("utf-8", "latin-1")

    @property
    def template(self) -> ChoiceTemplate:
        return ChoiceTemplate(
            prompt="Question: {text}\n",
            suffix="Type:",
            options=(" abbreviation", " entity", " description", " person", " location", " number"),
            label="coarse_label",
            labels=("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"),
        )

    def fields(self, line: str) -> Mapping[str, str] | None:
        found = LINE.fullmatch(line)
        return found and found.groupdict()
