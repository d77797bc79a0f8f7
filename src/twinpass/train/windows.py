"""Mean losses of so many steps in a row, kept up as steps are made and taken back."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from twinpass.core import StepReport


@dataclass(slots=True)
class Windows:
    """``means[i]`` is the mean loss of steps ``i`` to ``i + size`` - 1, ``best[i]`` the first of the lowest among ``means[:i + 1]``."""

    size: int
    means: "array[float]" = field(default_factory=lambda: array("d"))
    best: "array[int]" = field(default_factory=lambda: array("Q"))

    def extend(self, steps: Sequence[StepReport]) -> None:
        """Take in the steps made since, each looked at once: all of ``steps`` are in then."""
        known, windows = len(self.means), len(steps) - self.size + 1
        losses = [steps[i].estimate.loss for i in range(known, len(steps))] if windows > known else []
        for first in range(known, windows):
            window = losses[first - known : first - known + self.size]
            mean = float(np.convolve(window, np.ones(self.size) / self.size, mode="valid")[0])
            lowest = self.best[-1] if self.best else first
            self.means.append(mean)
            self.best.append(first if mean < self.means[lowest] else lowest)

    def cut(self, steps: int) -> None:
        """Forget all but the first ``steps`` steps."""
        left = max(0, steps - self.size + 1)
        del self.means[left:], self.best[left:]
