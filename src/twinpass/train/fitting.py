"""Which rows directions are fitted to, and which say what they are worth."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from twinpass.model.trainable import Fitting
from twinpass.perturb.noise import derive_seed

T = TypeVar("T")

APART = 5
"""One row in so many is set apart."""


def split(examples: Sequence[T], fitting: Fitting, batch_size: int, seed: int, draw: int) -> tuple[list[T], list[T]]:
    """Rows to fit to, and the step's batch: a pure function of (seed, draw).

    A fifth of the rows is set apart for batches throughout a run, so that nothing was ever fitted to them: what a direction is
    worth there is what it is worth. From the others as many are drawn as ``fitting`` allows. A single row serves for both.
    """
    count = len(examples)
    order = _shuffled(count, derive_seed(seed, "split"))
    apart = max(1, count // APART)
    kept, rest = order[:apart], order[apart:] if count > 1 else order
    fit = rest[_shuffled(len(rest), derive_seed(seed, "fit", draw))[: fitting.rows]]
    chosen = kept[_shuffled(len(kept), derive_seed(seed, "batch", draw))[:batch_size]]
    return [examples[i] for i in fit], [examples[i] for i in chosen]


def _shuffled(count: int, seed: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(seed)).permutation(count)
