"""Attention of new tokens over slots is the softmax of products, whatever lies elsewhere in the pool."""

import numpy as np
import pytest
import torch
from tiers import some_fast
from torch import Tensor

from twinpass.cache.pool import Pool
from twinpass.engine.embedded.scoring.attention import Look
from twinpass.engine.embedded.scoring.paged import LinesPass

SLOTS = np.zeros((4, 40), np.int64)
SLOTS[0, :3], SLOTS[1, 0], SLOTS[3] = (4, 9, 2), 7, np.random.default_rng(0).permutation(60)[:40] + 10
SLOTS[3, :2] = 9, 4
LENGTHS = np.array([3, 1, 0, 40])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("look", [Look(0.3), Look(0.3, window=2), Look(0.3, softcap=0.7), Look(1.0, 3, 2.0)], ids=str)
@pytest.mark.parametrize("shape", some_fast([(1, 1), (6, 2), (5, 5), (9, 1)], [(6, 2), (9, 1)]), ids=str)
@pytest.mark.parametrize("widths", some_fast([(8, 7), (64, 64), (128, 32)], [(8, 7), (64, 64)]), ids=str)
def test_attention_is_softmax_of_products(
    shape: tuple[int, int], widths: tuple[int, int], look: Look, dtype: torch.dtype
) -> None:
    """Each pair of widths, and of heads and groups, is compiled by itself: the fast tier takes those that differ most."""
    (heads, groups), (width, other) = shape, widths
    generator = torch.Generator().manual_seed(heads)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    pool = Pool(70)
    keys, values = random(70, groups, width), random(70, groups, other)
    pool.write(0, torch.arange(70), keys, values)
    q, k, v = random(4, heads, width), random(4, groups, width), random(4, groups, other)
    found = LinesPass(SLOTS, LENGTHS, pool).attend(0, q, k, v, look)
    assert found.dtype is dtype
    assert not found[2].any()
    for row in (0, 1, 3):
        slots = SLOTS[row, : LENGTHS[row]]
        keys[slots[-1]], values[slots[-1]] = k[row], v[row]
        seen = slots[-(look.window or 70) :]
        for head in range(heads):
            own, others = keys[seen, head * groups // heads], values[seen, head * groups // heads]
            scores = (own @ q[row, head]) * look.scale
            if look.softcap is not None:
                scores = torch.tanh(scores / look.softcap) * look.softcap
            expected = torch.softmax(scores, 0) @ others
            torch.testing.assert_close(found[row, head], expected)
    for plane, expected in zip(pool.of(0), (keys, values), strict=True):
        assert torch.equal(plane, expected)


def test_a_row_has_the_same_bits_beside_any_others() -> None:
    generator = torch.Generator().manual_seed(1)
    pool = Pool(70)
    pool.write(0, torch.arange(70), *torch.randn((2, 70, 2, 64), generator=generator))
    q, k, v = torch.randn((4, 6, 64), generator=generator), *torch.randn((2, 4, 2, 64), generator=generator)
    whole = LinesPass(SLOTS, LENGTHS, pool).attend(0, q, k, v, Look(0.1))
    for row in (0, 1, 3):
        own = slice(row, row + 1)
        alone = LinesPass(SLOTS[own, : LENGTHS[row]], LENGTHS[own], pool).attend(0, q[own], k[own], v[own], Look(0.1))
        assert torch.equal(alone[0], whole[row])


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000 - (1 << 32)], ids=["the usual", "of inf - inf on x86"])
def test_a_broken_row_is_seen_and_leaves_others_alone(bits: int) -> None:
    generator = torch.Generator().manual_seed(1)
    pool = Pool(70)
    pool.write(0, torch.arange(70), *torch.randn((2, 70, 2, 64), generator=generator))
    q, k, v = torch.randn((4, 6, 64), generator=generator), *torch.randn((2, 4, 2, 64), generator=generator)
    k[0, 1, 3] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    broken = LinesPass(SLOTS, LENGTHS, pool).attend(0, q, k, v, Look(0.1)).isnan().flatten(1).any(1)
    assert broken.tolist() == [True, False, False, False]
