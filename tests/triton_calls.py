"""Functions that other Triton programs are made of, called by themselves."""

from collections.abc import Sequence

import torch
from torch import Tensor

from twinpass.perturb import triton_draw, triton_programs
from twinpass.perturb.shard import Shard
from twinpass.perturb.triton_draw import tl, triton


@triton.jit
def _box_muller(words, out, count, size: tl.constexpr):
    place = tl.arange(0, size)
    there = place < count
    radius = tl.load(words + 2 * place, mask=there, other=0).to(tl.uint32, bitcast=True)
    angle = tl.load(words + 2 * place + 1, mask=there, other=0).to(tl.uint32, bitcast=True)
    a, b = triton_draw.box_muller(radius, angle)
    tl.store(out + 2 * place, a, mask=there)
    tl.store(out + 2 * place + 1, b, mask=there)


def box_muller(words: Tensor) -> Tensor:
    """Pairs of normals [n, 2] from pairs (radius, angle) of words, given as int32."""
    out = torch.empty(words.shape, device=words.device)
    size = triton.next_power_of_2(len(words))
    _box_muller[(1,)](words, out, len(words), size=size, enable_fp_fusion=False)
    return out


@triton.jit
def _place(programs, out, start, width, stride, across, tile: tl.constexpr):
    program = tl.load(programs + tl.program_id(0))
    base, memory, inside = triton_programs._shard_tile(program, start, width, stride, across, tile)
    out += 3 * tl.program_id(0)
    tl.store(out, base)
    tl.store(out + 1, memory)
    tl.store(out + 2, tl.sum(inside.to(tl.int64)))


def places(device: str, shard: Shard, across: int, programs: Sequence[int], tile: int) -> Tensor:
    """For each program [p, 3]: its first logical element, where that is in memory, how many elements it has."""
    out = torch.empty(len(programs), 3, dtype=torch.int64, device=device)
    numbers = torch.tensor(programs, dtype=torch.int32, device=device)
    _place[(len(programs),)](numbers, out, shard.start, shard.width, shard.stride, across, tile=tile)
    return out
