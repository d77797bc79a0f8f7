"""Attention of one new token a line, straight from where the pool has its keys and values (Numba, CPU).

A line's token looks at all that is in the line's slots, so that there is nothing to mask, and nothing is gathered first.
"""

from typing import Any

import numpy as np
import torch
from numba import prange
from numpy.typing import NDArray
from torch import Tensor

from twinpass.cache.pool import Pool
from twinpass.engine.embedded.scoring.attention import Attending, Look
from twinpass.engine.embedded.scoring.packing import Rows
from twinpass.model.causal import CausalModel
from twinpass.perturb.compiled import kernel
from twinpass.perturb.threads import threads_for


def suits(causal: CausalModel) -> bool:
    """Whether a model's keys and values lie in main memory, in numbers that Numba has."""
    return causal.device.torch_device.type == "cpu" and causal.model.dtype in (torch.float32, torch.float64)


class LinesPass(Attending):
    """One row a line, which looks at the keys and values in its own slots, the last of them its own.

    Args:
        slots: [rows, longest]; a row with none is told zeros.
        lengths: how many slots each row has, [rows].
        pool: where they are.
    """

    def __init__(self, slots: Rows, lengths: Rows, pool: Pool) -> None:
        self._slots, self._lengths, self._pool = slots, lengths, pool
        self._stored = np.flatnonzero(lengths)
        own = slots[self._stored, lengths[self._stored] - 1]
        self._rows, self._into = torch.from_numpy(self._stored), torch.from_numpy(own)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, look: Look) -> Tensor:
        self._pool.write(layer, self._into, k[self._rows], v[self._rows])
        keys, values = self._pool.of(layer)
        out = torch.zeros((*q.shape[:2], v.shape[2]), dtype=v.dtype)
        seen = self._lengths.max() if look.window is None else look.window
        firsts = np.maximum(self._lengths - seen, 0)
        queries, pool, others, target = (part.numpy() for part in (q.contiguous(), keys, values, out))
        scale, softcap = _scalar(q, look.scale), _scalar(q, look.softcap or 0.0)
        with threads_for(q.numel() * int(self._lengths.max())):
            _attend(queries, pool, others, target, self._slots, firsts, self._lengths, scale, softcap)
        return out


def _scalar(like: Tensor, value: float) -> Any:
    return np.float64(value) if like.dtype is torch.float64 else np.float32(value)


@kernel(parallel=True, fastmath={"reassoc", "contract"})
def _attend(
    q: NDArray[Any],
    keys: NDArray[Any],
    values: NDArray[Any],
    out: NDArray[Any],
    slots: Rows,
    firsts: Rows,
    lasts: Rows,
    scale: Any,
    softcap: Any,
) -> None:
    heads, groups = q.shape[1], keys.shape[1]
    share = heads // groups
    for r in prange(q.shape[0]):
        first, count = firsts[r], lasts[r] - firsts[r]
        weights = np.empty((heads, max(count, 1)), q.dtype)
        for j in range(count):
            key = keys[slots[r, first + j]]
            for h in range(heads):
                query, other, product = q[r, h], key[h // share], scale - scale
                for i in range(query.size):
                    product += query[i] * other[i]
                weights[h, j] = product * scale
        for h in range(heads if count else 0):
            own = weights[h]
            if softcap > 0:
                for j in range(count):
                    own[j] = np.tanh(own[j] / softcap) * softcap
            largest, total = own.max(), scale - scale
            for j in range(count):
                own[j] = np.exp(own[j] - largest)
                total += own[j]
            for j in range(count):
                own[j] /= total
        for j in range(count):
            value = values[slots[r, first + j]]
            for h in range(heads):
                target, other, weight = out[r, h], value[h // share], weights[h, j]
                for i in range(target.size):
                    target[i] += weight * other[i]
