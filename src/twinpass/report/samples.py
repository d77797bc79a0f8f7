"""``samples/step-N.json``: the best and the worst texts of each evaluation, where texts were written."""

from pathlib import Path

from twinpass.core import Evaluation
from twinpass.report.files import storing, write_text
from twinpass.report.listener import Listener
from twinpass.report.plain import dumped


class Samples(Listener):
    """Writes a file an evaluation into ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def evaluated(self, step: int, evaluation: Evaluation, seconds: float) -> None:
        if not evaluation.samples:
            return
        with storing(self._folder):
            self._folder.mkdir(exist_ok=True)
        text = dumped(evaluation.samples, ensure_ascii=False, indent=2)
        write_text(self._folder / f"step-{step}.json", text + "\n")
