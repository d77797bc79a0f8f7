"""Attention as one operator, and norms by PyTorch's kernel: what runs on a device returns what the CPU's own way does."""

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from twinpass.engine.embedded.linear import device_norms
from twinpass.engine.embedded.scoring import fused

SHAPES = [(1, 1, 1, 1, 1), (2, 4, 3, 5, 7), (3, 2, 1, 16, 16), (1, 1, 8, 3, 33)]
"""Pieces, key heads, query heads a key head, queries, keys."""


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("count", "groups", "share", "n", "m"), SHAPES)
def test_attention_is_softmax_of_products(count: int, groups: int, share: int, n: int, m: int) -> None:
    queries, keys, values = (
        random(count, groups, share * n, 8),
        random(count, groups, m, 8),
        random(count, groups, m, 6),
    )
    hidden = random(count, 1, 1, n, m) > 0
    hidden[..., 0] = False
    bias = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
    allowed = fused.mask(bias, share)
    assert allowed.shape == (count, 1, share * n, m)
    assert all(stride % fused.ALIGNED == 0 for stride in allowed.stride()[:-1])
    scores = torch.matmul(queries, keys.transpose(2, 3)) * 0.3
    weights = torch.softmax(scores.view(count, groups, share, n, m) + bias, -1).view(scores.shape)
    found = fused.attend(queries, keys, values, allowed, 0.3)
    torch.testing.assert_close(found, torch.matmul(weights, values), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", device_norms.TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", [(2, 7, 48), (14, 48), (2, 3, 5, 48)])
def test_each_lane_is_scaled_by_its_own_weight(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = (3 * random(*shape)).to(dtype), random(2, 48).to(dtype)
    found = device_norms.rms_norm(x, weight, 1e-6, 0.0)
    for lane, part in enumerate(x.chunk(2)):
        norm: torch.nn.Module = LlamaRMSNorm(48, 1e-6).to(dtype)
        with torch.no_grad():
            norm.get_parameter("weight").copy_(weight[lane])
            expected = norm(part)
        tolerance = device_norms.TOLERANCES[dtype]
        torch.testing.assert_close(
            found.chunk(2)[lane], expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())
        )


def test_a_weight_beside_one_is_not_rounded() -> None:
    assert device_norms.offsets(torch.bfloat16) == (0.0,)
    assert device_norms.offsets(torch.float32) == (0.0, 1.0)
