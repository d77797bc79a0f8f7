"""Gumbel noise for sampling: with it the largest of ``logits + noise`` is a sample of their softmax (the Gumbel-max trick).

Each token of the vocabulary has its own noise, a pure function of (seed, name, token id), so that lanes whose logits differ
little choose the same token almost always: common random numbers. The words are Philox's, as in :mod:`twinpass.perturb.noise`.

Noise and choice are made in passes over a row that stays in the cache; nothing as large as the logits is written.
"""

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from twinpass.perturb.compiled import kernel
from twinpass.perturb.draw import _log, _words
from twinpass.perturb.noise import F32, name_key, philox
from twinpass.perturb.noise import _log as _log_reference
from twinpass.perturb.threads import threads_for
from twinpass.perturb.vectorised import exp, largest

_f = np.float32
SMALL = 2**-6
"""Below this -log(1 - v) is summed as a series, since 1 - v would lose v's last bits."""

PART = 1024
"""Tokens among which the chosen one is looked for at a time."""


@kernel()
def _fill(out, seed, highs):
    size = out.shape[1]
    for row in range(out.shape[0]):
        words = _words(np.uint64(0), (size + 3) // 4, seed, highs[row])
        values = out[row]
        for i in range(size):
            values[i] = _gumbel(words[i])


@njit(inline="always")
def _gumbel(word):
    v = _f(word) * _f(2**-32) + _f(2**-33)
    series = ((v * _f(0.25) + _f(1 / 3)) * v + _f(0.5)) * v * v + v
    rest = _f(~word) * _f(2**-32) + _f(2**-33)
    exponential = series if v < _f(SMALL) else -_log(rest)
    return -_log(exponential)


def gumbel(seed: int, names: list[str], size: int) -> F32:
    """Noise [len(names), size], a row a name."""
    out = np.empty((len(names), size), np.float32)
    _fill(out, np.uint64(seed), np.array([name_key(name, "token") for name in names], np.uint64))
    return out


def pick(
    logits: F32, rows: NDArray[np.int64], noise: F32, which: NDArray[np.int64], temperature: float
) -> tuple[NDArray[np.int64], F32]:
    """Tokens of some ``rows`` of ``logits`` [N, size], and their log-probabilities.

    A token is the first of the largest ``logprobs / temperature + noise[which]``, at temperature 0 of the largest logits.
    """
    tokens, logprobs = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
    with threads_for(len(rows) * logits.shape[1]):
        _pick(logits, rows, noise, which, _f(temperature), tokens, logprobs)
    return tokens, logprobs


@kernel(parallel=True, fastmath={"reassoc", "contract"})
def _pick(logits, rows, noise, which, temperature, tokens, logprobs):
    size = logits.shape[1]
    for r in prange(rows.size):
        row, scores = logits[rows[r]], np.empty(min(PART, size), np.float32)
        top, total = largest(row), _f(0)
        for i in range(size):
            total += exp(row[i] - top)
        norm, best = top + np.log(total), _f(-np.inf)
        tokens[r] = 0
        for first in range(0, size, PART):
            part = row[first : first + PART]
            if temperature > 0:
                own = noise[which[r], first : first + PART]
                for i in range(part.size):
                    scores[i] = (part[i] - norm) / temperature + own[i]
                part = scores[: part.size]
            here = largest(part)
            if here > best:
                best, at = here, 0
                while at < part.size - 1 and part[at] != here:
                    at += 1
                tokens[r] = first + at
        logprobs[r] = row[tokens[r]] - norm


def reference(seed: int, name: str, size: int) -> F32:
    """The definition of one row, in plain NumPy."""
    f = np.float32
    words: NDArray[np.uint32] = np.stack(
        philox(seed, name_key(name, "token"), np.arange(-(-size // 4), dtype=np.uint64)), -1
    )
    word = words.reshape(-1)[:size]
    v = word.astype(f) * f(2**-32) + f(2**-33)
    series = ((v * f(0.25) + f(1 / 3)) * v + f(0.5)) * v * v + v
    rest = (~word).astype(f) * f(2**-32) + f(2**-33)
    exponential = np.where(v < f(SMALL), series, -_log_reference(np.minimum(rest, f(1) - f(2**-24))))
    return -_log_reference(exponential)
