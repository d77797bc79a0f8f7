"""Lanes as sums and differences in bfloat16: the rounding of PyTorch, and nothing lost that float32 had."""

import numeric
import numpy as np
import pytest
import torch
from numeric import Array
from torch import Tensor

from twinpass.perturb import kernels
from twinpass.perturb.gemm import sums
from twinpass.perturb.layout import flat_view
from twinpass.perturb.noise import DISTRIBUTIONS, Distribution

one_thread, threads = numeric.one_thread, numeric.threads

SIZES = [0, 1, 31, 4097, 70_000]


PLUS, MINUS, DIFFERENCE = (np.array(places, np.int64) for places in ([2, 1], [0, -1], [2, 2]))
"""Lanes 2 and 0 are a pair, lane 1 is on its own; the difference comes after both."""


def operands(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    plus = torch.randn(*shape, generator=generator)
    return plus, plus + 1e-3 * torch.randn(*shape, generator=generator)


def array(x: Tensor) -> Array:
    return flat_view(x).reshape(x.shape)


def split(x: Tensor) -> Tensor:
    low = torch.empty(x.shape, dtype=torch.bfloat16)
    sums.split(array(x), PLUS, MINUS, DIFFERENCE, array(low))
    return low


@pytest.mark.parametrize("size", SIZES)
def test_sums_and_differences_are_rounded_to_nearest(size: int, threads: int) -> None:
    plus, minus = operands(3, size)
    total, alone, difference = split(torch.stack([minus, minus + 1, plus]))
    assert torch.equal(total, (plus + minus).bfloat16())
    assert torch.equal(alone, (minus + 1).bfloat16())
    assert torch.equal(difference, (plus - minus).bfloat16())


def test_ties_go_to_even_and_what_is_no_number_stays_none() -> None:
    odd = torch.tensor([[1 + 2**-8, 1 + 3 * 2**-8, torch.inf, -torch.inf, torch.nan, 3.4e38]])
    for found in split(torch.stack([torch.zeros(1, 6), odd, odd])):
        assert torch.equal(found.isnan(), odd.isnan())
        assert torch.equal(found.nan_to_num(), odd.bfloat16().nan_to_num())


@pytest.mark.parametrize("shape", [(0, 5), (3, 5), (129, 300)])
def test_lanes_come_back_from_both(shape: tuple[int, int], threads: int) -> None:
    low = operands(3, *shape)[0].bfloat16()
    y = torch.full((3, *shape), torch.nan)
    sums.join(array(low), PLUS, MINUS, DIFFERENCE, y.numpy())
    total, alone, difference = low.double()
    assert torch.allclose(
        y.double(), torch.stack([(total - difference) / 2, alone, (total + difference) / 2]), rtol=1e-6
    )


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
