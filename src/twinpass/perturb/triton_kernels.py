"""The kernels of :mod:`twinpass.perturb.kernels` for CUDA, in Triton: the same bits from the same arguments.

Weights are contiguous tensors of float32 or bfloat16; the numbers that belong to lanes or terms stay in NumPy arrays.
Nothing waits for the device but :func:`lattice_add`, which returns a count.

Raises, all of them: ModelError for a tensor of another dtype or layout, ValueError for a shard that does not fit it.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinpass.errors import ModelError
from twinpass.perturb import triton_programs as programs
from twinpass.perturb.noise import UNIT, Distribution
from twinpass.perturb.shard import Shard

DTYPES = (torch.float32, torch.bfloat16)
TILE = 2048
OPTIONS: Mapping[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}
"""How programs are launched: a product and a sum must not become one FMA, as the reference rounds both."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """``rows`` of ``across`` tiles of ``tile`` elements: one program each."""

    rows: int
    across: int
    tile: int

    @classmethod
    def of(cls, numel: int, shard: Shard) -> "Tiling":
        """The tiles of a shard that has ``numel`` elements; rows that begin within a unit may need one more each."""
        rows = numel // max(shard.width, 1)
        if rows * shard.width != numel:
            raise ValueError(f"{numel} elements are not whole rows of {shard}")
        aligned = shard.start % UNIT == 0 and (rows <= 1 or shard.stride % UNIT == 0)
        reach = shard.width if aligned else shard.width + UNIT - 1
        tile = min(TILE, max(UNIT, 1 << (reach - 1).bit_length()))
        return cls(rows, -(-reach // tile), tile)

    @classmethod
    def each(cls, bounds: NDArray[np.int64]) -> "Tiling":
        """As many tiles for each of several parameters that lie back to back as the largest needs."""
        largest = int(np.diff(bounds).max(initial=1))
        tile = min(TILE, max(UNIT, 1 << (largest - 1).bit_length()))
        return cls(len(bounds) - 1, -(-largest // tile), tile)


def fill(out: Tensor, seed: int, key: int, start: int, distribution: Distribution) -> None:
    """``out[:] = z[start : start + n]`` of the parameter whose ``name_key`` is ``key``; ``out`` [n] is float32."""
    shard = Shard.contiguous(start, out.numel())
    _launch(
        programs.fill,
        out.device,
        Tiling.of(out.numel(), shard),
        **_place(shard),
        out=_memory(out, torch.float32),
        seed=seed,
        key=key,
        distribution=distribution,
    )


def perturb(
    w: Tensor, out: Tensor, scales: NDArray[np.float64], seed: int, key: int, distribution: Distribution, shard: Shard
) -> None:
    """``out[l] = w + scales[l] * z``, ``z`` at the elements of ``shard``: one read and one draw for all lanes of a probe.

    ``w`` has shape [n], ``out`` [lanes, n] of the same dtype; bfloat16 rounds to nearest (ties away from zero).
    """
    _launch(
        programs.perturb,
        w.device,
        Tiling.of(w.numel(), shard),
        **_place(shard),
        w=_memory(w, *DTYPES),
        out=_memory(out, w.dtype),
        scales=_scales(w.device, scales.tobytes()),
        lanes=len(scales),
        seed=seed,
        key=key,
        distribution=distribution,
    )


def perturb_each(
    w: Tensor,
    bounds: NDArray[np.int64],
    out: Tensor,
    scales: NDArray[np.float64],
    seed: int,
    keys: NDArray[np.uint64],
    distribution: Distribution,
) -> None:
    """:func:`perturb` of many small float32 parameters in one call: ``w[bounds[p] : bounds[p + 1]]`` is the one of ``keys[p]``.

    ``w`` has shape [n], ``out`` [lanes, n].
    """
    _launch(
        programs.perturb_each,
        w.device,
        Tiling.each(bounds),
        w=_memory(w, torch.float32),
        out=_memory(out, torch.float32),
        parameters=_send(w, bounds[:-1], bounds[1:], keys),
        count=len(keys),
        total=w.numel(),
        scales=_scales(w.device, scales.tobytes()),
        lanes=len(scales),
        seed=seed,
        distribution=distribution,
    )


def gather(w: Tensor, rows: Tensor, out: Tensor, scale: float, seed: int, key: int, distribution: Distribution) -> None:
    """``out[r] = (w + scale * z)[rows[r]]`` for an embedding ``w`` [vocabulary, width]; draws only those rows.

    ``rows`` [r] is int64 on the same device, ``out`` [r, width] of the same dtype as ``w``.
    """
    width = w.shape[1]
    _launch(
        programs.gather,
        w.device,
        Tiling.of(out.numel(), Shard.contiguous(width, width)),  # any row may be the first
        w=_memory(w, *DTYPES),
        rows=rows,
        out=_memory(out, w.dtype),
        scale=_scales(w.device, np.float64(scale).tobytes()),
        width=width,
        seed=seed,
        key=key,
        distribution=distribution,
    )


def accumulate(
    w: Tensor,
    seeds: NDArray[np.uint64],
    scales: NDArray[np.float64],
    key: int,
    rounding_key: int,
    distribution: Distribution,
    shard: Shard,
) -> None:
    """``w += scales[t] * z(seeds[t])`` term after term in one pass; bfloat16 rounds stochastically, from the seed.

    ``w`` is memory of any shape; ``shard`` says which elements of the logical parameter it holds.
    """
    sent = _send(w, seeds, scales)
    _launch(
        programs.accumulate,
        w.device,
        Tiling.of(w.numel(), shard),
        **_place(shard),
        w=_memory(w, *DTYPES),
        seeds=sent[0],
        scales=sent[1],
        terms=len(seeds),
        key=key,
        rounding_key=rounding_key,
        distribution=distribution,
    )


def accumulate_each(
    w: Tensor,
    bounds: NDArray[np.int64],
    seeds: NDArray[np.uint64],
    scales: NDArray[np.float64],
    keys: NDArray[np.uint64],
    distribution: Distribution,
) -> None:
    """:func:`accumulate` of many small float32 parameters in one call, laid out as for :func:`perturb_each`."""
    sent = _send(w, seeds, scales)
    _launch(
        programs.accumulate_each,
        w.device,
        Tiling.each(bounds),
        w=_memory(w, torch.float32),
        parameters=_send(w, bounds[:-1], bounds[1:], keys),
        count=len(keys),
        seeds=sent[0],
        scales=sent[1],
        terms=len(seeds),
        distribution=distribution,
    )


def lattice_add(
    w: Tensor,
    seeds: NDArray[np.uint64],
    exact: NDArray[np.int64],
    update: NDArray[np.float64],
    times: NDArray[np.int64],
    key: int,
    rounding_key: int,
    quantum: float,
    limit: int,
    distribution: Distribution,
    shard: Shard,
) -> int:
    """``w += quantum * sum_t (exact[t] * 4 z_t + times[t] * floor(update[t] * z_t + u_t))``, in place.

    Returns how many weights would leave the lattice's range of ``limit`` quanta; unless that is 0, none is moved.

    ``w`` is float32 memory of any shape that holds ``shard``, in whole quanta (so there are no negative zeros);
    ``quantum`` is a power of two. ``z_t`` is a multiple of 1/4, ``u_t`` the rounding stream of the same seed.
    """
    if np.frexp(quantum)[0] != 0.5:
        raise ValueError(f"a quantum is a power of two, not {quantum}")
    tiling = Tiling.of(w.numel(), shard)
    sent = _send(w, seeds, exact, update, times)
    outside = torch.zeros(max(tiling.rows * tiling.across, 1), dtype=torch.int32, device=w.device)
    arguments = {
        **_place(shard),
        "w": _memory(w, torch.float32),
        "outside": outside,
        **dict(zip(("seeds", "exact", "update", "times"), sent, strict=True)),
        "terms": len(seeds),
        "key": key,
        "rounding_key": rounding_key,
        "quantum": quantum,
        "per_quantum": 1 / quantum,
        "limit": limit,
        "distribution": distribution,
    }
    _launch(programs.lattice, w.device, tiling, **arguments, undo=False)
    count = int(outside.sum())
    if count:  # the programs that found none outside have moved theirs
        _launch(programs.lattice, w.device, tiling, **arguments, undo=True)
    return count


def _launch(program: Any, device: torch.device, tiling: Tiling, **arguments: Any) -> None:
    if not (count := tiling.rows * tiling.across):
        return
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        program[(count,)](**arguments, across=tiling.across, tile=tiling.tile, **OPTIONS)


def _place(shard: Shard) -> dict[str, int]:
    return {"start": shard.start, "width": shard.width, "stride": shard.stride}


def _memory(tensor: Tensor, *dtypes: torch.dtype) -> Tensor:
    """The tensor as programs take it, if it is of one of the dtypes: bfloat16 as its bits in int16."""
    if tensor.dtype not in dtypes:
        wanted = " or ".join(map(str, dtypes))
        raise ModelError(f"a tensor is {tensor.dtype}: to be read or written by this kernel it must be {wanted}")
    if not tensor.is_contiguous():
        raise ModelError("weights on a CUDA device must be contiguous; replace them by their .contiguous() copy")
    data = tensor.detach()
    return data.view(torch.int16) if data.dtype is torch.bfloat16 else data


def _send(like: Tensor, *rows: NDArray[Any]) -> Tensor:
    """Arrays of 64-bit numbers as the rows of an int64 tensor beside ``like``: one transfer, not waited for."""
    packed = np.stack([np.ascontiguousarray(row).view(np.int64) for row in rows])
    return torch.from_numpy(packed).to(like.device, non_blocking=True)


@lru_cache(maxsize=256)
def _scales(device: torch.device, scales: bytes) -> Tensor:
    """The lanes' scales (float64) on a device, only to be read: sent once, as all parameters of a pass have the same."""
    return _send(torch.empty(0, device=device), np.frombuffer(scales, np.float64))[0]
