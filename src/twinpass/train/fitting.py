"""Which rows directions are fitted to, and which say what they are worth."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from twinpass.model.trainable import Fitting
from twinpass.perturb.noise import derive_seed

T = TypeVar("T")


def split(examples: Sequence[T], fitting: Fitting, batch_size: int, seed: int, draw: int) -> tuple[list[T], list[T]]:
    """Rows to fit to, and the step's batch: disjoint, where there are two rows at least, and a pure function of (seed, draw).

    The batch is ``batch_size`` rows, but no more than a quarter of all; as many of the rest are fitted to as ``fitting`` allows.
    """
    count = len(examples)
    order = np.random.Generator(np.random.Philox(derive_seed(seed, "split", draw))).permutation(count)
    size = max(1, min(batch_size, count // 4))
    fit = order[size : size + fitting.rows] if count > 1 else order
    return [examples[i] for i in fit], [examples[i] for i in order[:size]]
