"""The directions that a run has taken up: files that its journal names by their hashes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from twinpass.core import StepReport
from twinpass.engine.base import Engine
from twinpass.model.space import Space
from twinpass.report.files import written


@dataclass(frozen=True)
class Spaces:
    """``DIGEST.safetensors`` in a folder, one for every step that took up directions."""

    folder: Path

    @classmethod
    def of(cls, run: Path) -> "Spaces":
        """Those of a run's folder."""
        return cls(run / "spaces")

    def save(self, space: Space) -> str:
        """Write a space, on the disk before anything names it; returns its digest.

        Raises:
            StorageError: it cannot be written.
        """
        digest = space.digest
        written(self._file(digest), space.save)
        return digest

    def load(self, digest: str) -> Space:
        """Read one back.

        Raises:
            JournalError: it is not there as it was written.
        """
        return Space.load(self._file(digest), digest)

    def _file(self, digest: str) -> Path:
        return self.folder / f"{digest[:16]}.safetensors"


TOGETHER = 16
"""Steps that are applied in one pass over the weights; between passes it is said how far one is."""


def advance(
    engine: Engine,
    steps: Sequence[StepReport],
    spaces: Spaces,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Bring an engine over ``steps`` once more: each takes up its directions, if it had any of its own, and is applied.

    ``told`` hears how many of how many are done.

    Raises:
        JournalError: directions are not there any more.
    """
    begin = {i for i, step in enumerate(steps) if step.space is not None}
    for first, last in pairwise(sorted(begin | {*range(0, len(steps), TOGETHER), len(steps)})):
        told(first, len(steps))
        if (space := steps[first].space) is not None:
            engine.use(spaces.load(space))
        engine.update([term for step in steps[first:last] for term in step.terms])
    if steps:
        told(len(steps), len(steps))
