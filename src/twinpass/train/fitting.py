"""Which rows directions are fitted to, and which say what they are worth."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from twinpass.model.trainable import Fitting
from twinpass.perturb.noise import derive_seed
from twinpass.task.example import Example

T = TypeVar("T")

APART = 5
"""One row in so many is set apart."""

FIT_TOKENS = 1024
"""Answer tokens that directions are fitted to, at the most: as many as are regressed on (:mod:`twinpass.estimate.directions`)."""

BATCH_TOKENS = 256
"""Answer tokens of a batch, at the most: each is scored under every lane, and a text's over the whole vocabulary."""

FIRST = 128
"""Rows that the first directions of a run are fitted to, if there are as many."""


def split(
    examples: Sequence[T],
    fitting: Fitting,
    batch_size: int,
    seed: int,
    draw: int,
    tokens: Callable[[T], int] = lambda example: 1,
) -> tuple[list[T], list[T]]:
    """Rows to fit to, and the step's batch: a pure function of (seed, draw).

    A fifth of the rows, or two batches, is set apart for batches throughout a run, so that nothing was ever fitted to them: what a
    direction is worth there is what it is worth. Of the others the first draw fits to :data:`FIRST`, the next to twice as many,
    and so on up to ``fitting.rows``, so that a short run reads few prompts; if there are more, later draws take turns with all.
    A single row serves for both. ``tokens`` says how many answer tokens a row has: rows with many, texts, are fewer, so that
    about :data:`FIT_TOKENS` are fitted to and :data:`BATCH_TOKENS` scored under every lane.
    """
    count = len(examples)
    mean = sum(map(tokens, examples)) / count
    rows, batch_size = (
        min(most, max(1, int(room / mean))) for most, room in ((fitting.rows, FIT_TOKENS), (batch_size, BATCH_TOKENS))
    )
    order = _shuffled(count, derive_seed(seed, "split"))
    apart = max(1, min(count // APART, 2 * batch_size))
    kept, rest = order[:apart], order[apart:] if count > 1 else order
    grown = max(0, (rows - 1).bit_length() - FIRST.bit_length() + 1)  # draws until all are fitted to
    size = min(rows, FIRST << min(draw, grown))
    turn = rows * max(0, draw - grown) if len(rest) > rows else 0
    fit = np.roll(rest, -turn)[:size]
    chosen = kept[_shuffled(len(kept), derive_seed(seed, "batch", draw))[:batch_size]]
    return [examples[i] for i in fit], [examples[i] for i in chosen]


def answer_tokens(example: Example) -> int:
    """Places where an example's answers are read: options of one token are all read at one."""
    return 1 + sum(len(option) - 1 for option in example.options)


def _shuffled(count: int, seed: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(seed)).permutation(count)
