"""Attention of one new token a line, straight from where the pool has its keys and values (Numba, CPU).

A line's token looks at all that is in the line's slots, so that there is nothing to mask, and nothing is gathered first. In float32, where heads
fill whole registers, products are those of :mod:`twinpass.perturb.gemm.heads`; otherwise they are left to LLVM.
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
from twinpass.perturb.gemm.heads import dots, sums, vectors
from twinpass.perturb.noise import F32
from twinpass.perturb.threads import threads_for
from twinpass.perturb.vectorised import copy, softmax, squeeze


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
        self._longest = int(lengths.max())

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, look: Look) -> Tensor:
        keys, values = self._pool.planes(layer, k, v)
        out = torch.empty((*q.shape[:2], v.shape[2]), dtype=v.dtype)
        firsts = np.maximum(self._lengths - (self._longest if look.window is None else look.window), 0)
        rows: Any = [part.contiguous().numpy() for part in (q, k, v, out, keys, values)]
        rows += self._slots, firsts, self._lengths, _scalar(q, look.scale), _scalar(q, look.softcap or 0.0)
        registers = vectors(q.shape[2]), vectors(v.shape[2])
        with threads_for(q.numel() * self._longest):
            if q.dtype is torch.float32 and all(registers):
                share = q.shape[1] // k.shape[1]
                _attend_in_registers(*rows, *((0,) * number for number in (share, *registers)))
            else:
                _attend(*rows)
        return out


def _scalar(like: Tensor, value: float) -> Any:
    return np.float64(value) if like.dtype is torch.float64 else np.float32(value)


@kernel(parallel=True, fastmath={"reassoc", "contract"})
def _attend_in_registers(
    q: F32,
    k: F32,
    v: F32,
    out: F32,
    keys: F32,
    values: F32,
    slots: Rows,
    firsts: Rows,
    lasts: Rows,
    scale: np.float32,
    softcap: np.float32,
    share: tuple[int, ...],
    key_registers: tuple[int, ...],
    value_registers: tuple[int, ...],
) -> None:
    groups, width, other = k.shape[1], k.shape[2], v.shape[2]
    for r in prange(q.shape[0]):
        first, count = r * slots.shape[1] + firsts[r], lasts[r] - firsts[r]
        if not count:
            out[r] = 0
            continue
        copy(k[r], keys[slots[r, lasts[r] - 1]])
        copy(v[r], values[slots[r, lasts[r] - 1]])
        weights = np.empty((len(share), count), np.float32)
        for g in range(groups):
            h = (r * groups + g) * len(share)
            own = keys, g * width, groups * width, slots, first, count
            dots(q, h * width, *own, scale, weights, share, key_registers)
            for n in range(len(share)):
                squeeze(weights[n], softcap)
                softmax(weights[n])
            own = values, g * other, groups * other, slots, first, count
            sums(weights, *own, out, h * other, share, value_registers)


@kernel(parallel=True, fastmath={"reassoc", "contract"})
def _attend(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    out: NDArray[Any],
    keys: NDArray[Any],
    values: NDArray[Any],
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
        out[r] = 0
        if not count:
            continue
        copy(k[r], keys[slots[r, lasts[r] - 1]])
        copy(v[r], values[slots[r, lasts[r] - 1]])
        weights = np.empty((heads, count), q.dtype)
        for j in range(count):
            key = keys[slots[r, first + j]]
            for h in range(heads):
                query, other, product = q[r, h], key[h // share], scale - scale
                for i in range(query.size):
                    product += query[i] * other[i]
                weights[h, j] = product * scale
        for h in range(heads):
            own = weights[h]
            squeeze(own, softcap)
            top, total = own.max(), scale - scale
            for j in range(count):
                own[j] = np.exp(own[j] - top)
                total += own[j]
            for j in range(count):
                own[j] /= total
        for j in range(count):
            value = values[slots[r, first + j]]
            for h in range(heads):
                target, other, weight = out[r, h], value[h // share], weights[h, j]
                for i in range(target.size):
                    target[i] += weight * other[i]
