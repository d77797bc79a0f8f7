"""Lanes as sums and differences in bfloat16: the rounding of PyTorch, and nothing lost that float32 had."""

import numeric
import numpy as np
import pytest
import torch
from torch import Tensor

from twinpass.perturb import halves, kernels
from twinpass.perturb.layout import flat_view
from twinpass.perturb.noise import DISTRIBUTIONS, Distribution

one_thread, threads = numeric.one_thread, numeric.threads

SIZES = [0, 1, 31, 4097, 70_000]


def operands(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    plus = torch.randn(*shape, generator=generator)
    return plus, plus + 1e-3 * torch.randn(*shape, generator=generator)


def split(plus: Tensor, minus: Tensor) -> tuple[Tensor, Tensor]:
    total, difference = (torch.empty(plus.shape, dtype=torch.bfloat16) for _ in range(2))
    halves.split(*(flat_view(x) for x in (plus, minus, total, difference)))
    return total, difference


@pytest.mark.parametrize("size", SIZES)
def test_sum_and_difference_are_rounded_to_nearest(size: int, threads: int) -> None:
    plus, minus = operands(size)
    total, difference = split(plus, minus)
    assert torch.equal(total, (plus + minus).bfloat16())
    assert torch.equal(difference, (plus - minus).bfloat16())


def test_ties_go_to_even_and_what_is_no_number_stays_none() -> None:
    odd = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, torch.inf, -torch.inf, torch.nan, 3.4e38])
    total, difference = split(odd, torch.zeros(6))
    assert torch.equal(total.isnan(), odd.isnan())
    assert torch.equal(total.nan_to_num(), odd.bfloat16().nan_to_num())
    assert torch.equal(difference.nan_to_num(), odd.bfloat16().nan_to_num())


@pytest.mark.parametrize("first", [0, 7])
@pytest.mark.parametrize("shape", [(0, 5), (3, 5), (129, 300)])
def test_lanes_come_back_from_both(shape: tuple[int, int], first: int, threads: int) -> None:
    rows, columns = shape
    total, difference, moved = (operands(*shape)[0].mul(scale).bfloat16() for scale in (1.0, 1e-3, 0.5))
    plus, minus = (torch.full((rows, columns + 9), 7.0) for _ in range(2))
    low = [flat_view(x).reshape(shape) for x in (total, difference, moved)]
    halves.join(low[0], low[1], low[2], 1e-2, plus.numpy(), minus.numpy(), first)
    half = difference.double() + float(np.float32(1e-2)) * moved.double()
    for lane, expected in ((plus, total.double() + half), (minus, total.double() - half)):
        inside = lane[:, first : first + columns]
        assert torch.allclose(inside.double(), expected / 2, rtol=1e-6, atol=1e-7)
        assert (lane == 7.0).sum() == lane.numel() - inside.numel()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("start", [0, 129])
def test_noise_in_bfloat16(distribution: Distribution, start: int) -> None:
    """That of float32, to the bit where it is a multiple of a quarter."""
    z, low = np.empty(5000, np.float32), torch.empty(5000, dtype=torch.bfloat16)
    kernels.fill(z, 3, 4, start, distribution)
    kernels.fill(flat_view(low), 3, 4, start, distribution)
    if distribution == "gaussian":
        assert torch.allclose(low.float(), torch.from_numpy(z), rtol=2**-8, atol=0)
    else:
        assert torch.equal(low.float(), torch.from_numpy(z))
