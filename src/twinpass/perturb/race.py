"""Gumbel noise for sampling: with it the largest of ``logits + noise`` is a sample of their softmax (the Gumbel-max trick).

Each token of the vocabulary has its own noise, a pure function of (seed, name, token id), so that lanes whose logits differ
little choose the same token almost always: common random numbers. The words are Philox's, as in :mod:`twinpass.perturb.noise`.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from twinpass.perturb.compiled import kernel
from twinpass.perturb.draw import _log, _words
from twinpass.perturb.noise import F32, name_key, philox
from twinpass.perturb.noise import _log as _log_reference

_f = np.float32
SMALL = 2**-6
"""Below this -log(1 - v) is summed as a series, since 1 - v would lose v's last bits."""


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
