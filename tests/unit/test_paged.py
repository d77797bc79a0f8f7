"""Attention of new tokens over slots is the softmax of products, whatever lies elsewhere in the pool."""

import numpy as np
import pytest
import torch
from torch import Tensor

from twinpass.cache.pool import Pool
from twinpass.engine.embedded.scoring.attention import Look
from twinpass.engine.embedded.scoring.paged import LinesPass

SLOTS = np.array([[4, 9, 2, 0], [7, 0, 0, 0], [0, 0, 0, 0], [9, 4, 1, 3]])
LENGTHS = np.array([3, 1, 0, 4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("look", [Look(0.3), Look(0.3, window=2), Look(0.3, softcap=0.7), Look(1.0, 3, 2.0)], ids=str)
@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (6, 2), (5, 5)])
def test_attention_is_softmax_of_products(heads: int, groups: int, look: Look, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(heads)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    pool = Pool(10)
    keys, values = random(10, groups, 8), random(10, groups, 7)
    pool.write(0, torch.arange(10), keys, values)
    q, k, v = random(4, heads, 8), random(4, groups, 8), random(4, groups, 7)
    found = LinesPass(SLOTS, LENGTHS, pool).attend(0, q, k, v, look)
    assert found.dtype is dtype
    assert not found[2].any()
    for row in (0, 1, 3):
        slots = SLOTS[row, : LENGTHS[row]]
        keys[slots[-1]], values[slots[-1]] = k[row], v[row]
        seen = slots[-(look.window or 10) :]
        for head in range(heads):
            own, others = keys[seen, head * groups // heads], values[seen, head * groups // heads]
            scores = (own @ q[row, head]) * look.scale
            if look.softcap is not None:
                scores = torch.tanh(scores / look.softcap) * look.softcap
            expected = torch.softmax(scores, 0) @ others
            torch.testing.assert_close(found[row, head], expected)
    for plane, expected in zip(pool.of(0), (keys, values), strict=True):
        assert torch.equal(plane, expected)
