"""Minibatches as a pure function of (seed, draw): shuffled epochs, no state to save."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from twinpass.perturb.noise import derive_seed

T = TypeVar("T")


def batch(examples: Sequence[T], size: int, seed: int, draw: int) -> list[T]:
    """Minibatch number ``draw``: positions draw * size onwards in an endless row of shuffled epochs."""
    count = len(examples)
    chosen: list[T] = []
    position = draw * size
    while len(chosen) < size:
        epoch, offset = divmod(position + len(chosen), count)
        order = np.random.Generator(np.random.Philox(derive_seed(seed, "epoch", epoch))).permutation(count)
        chosen += [examples[i] for i in order[offset : offset + size - len(chosen)]]
    return chosen
