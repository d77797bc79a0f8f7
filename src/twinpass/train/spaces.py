"""The directions that a run has taken up: files that its journal names by their hashes."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from twinpass.core import StepReport
from twinpass.engine.base import Engine
from twinpass.model.space import Space


@dataclass(frozen=True)
class Spaces:
    """``DIGEST.safetensors`` in a folder, one for every step that took up directions."""

    folder: Path

    @classmethod
    def of(cls, run: Path) -> "Spaces":
        """Those of a run's folder."""
        return cls(run / "spaces")

    def save(self, space: Space) -> str:
        """Write a space, on the disk before anything names it; returns its digest."""
        digest = space.digest
        space.save(self._file(digest))
        return digest

    def load(self, digest: str) -> Space:
        """Read one back.

        Raises:
            JournalError: it is not there as it was written.
        """
        return Space.load(self._file(digest), digest)

    def _file(self, digest: str) -> Path:
        return self.folder / f"{digest[:16]}.safetensors"


def advance(engine: Engine, steps: Iterable[StepReport], spaces: Spaces) -> None:
    """Bring an engine over ``steps`` once more: each takes up its directions, if it had any of its own, and is applied.

    Raises:
        JournalError: directions are not there any more.
    """
    begins = 0

    def part(step: StepReport) -> int:
        nonlocal begins
        begins += step.space is not None
        return begins

    for _, together in groupby(steps, part):
        reports = list(together)
        if reports[0].space is not None:
            engine.use(spaces.load(reports[0].space))
        engine.update([term for report in reports for term in report.terms])
