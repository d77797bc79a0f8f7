"""Where Triton's kernels run, on a CUDA device or under its interpreter, and their calls beside Numba's."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numeric
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinpass.perturb import kernels, noise, triton_kernels
from twinpass.perturb.layout import flat_view
from twinpass.perturb.noise import DISTRIBUTIONS, Distribution
from twinpass.perturb.shard import Shard

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("no CUDA device; TRITON_INTERPRET=1 runs these on the CPU", allow_module_level=True)
DEVICE = "cpu" if INTERPRETED else "cuda"
NAME = "model.layers.0.self_attn.q_proj.weight"
KEY, ROUNDING_KEY = noise.name_key(NAME), noise.name_key(NAME, "round")
SEEDS = (0, 2**31 + 7, 2**63 + 12345, 2**64 - 1)
TERMS = ((3, 1e-3), (2**63 + 9, -0.2), (0, 2.0**-12), (2**64 - 1, 0.0), (3, -0.07))
GRIDDED: tuple[Distribution, ...] = ("binomial", "rademacher")
QUANTUM, LIMIT = 2.0**-22, 2**24
ROWS, WIDTHS = 4, (250, 384)
each_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)
each_width = pytest.mark.parametrize("width", WIDTHS)


def bits(tensor: Tensor) -> NDArray[Any]:
    """NaN counts as one value: a GPU does not keep which one it was given."""
    return numeric.bits(flat_view(torch.where(tensor.isnan(), float("nan"), tensor).to(tensor.dtype).cpu()))


def random_weights(count: int, dtype: torch.dtype) -> Tensor:
    """Ordinary weights, zeros of both signs, and what bfloat16 must not round away from."""
    weights = torch.randn(count, generator=torch.Generator().manual_seed(count)) / 2
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-40, 3.3e38])[:count]
    weights[: len(special)] = special
    return weights.to(dtype)


def lattice_weights(count: int) -> Tensor:
    steps = torch.randint(-(2**21), 2**21, (count,), generator=torch.Generator().manual_seed(count))
    return steps.float() * QUANTUM


def columns(terms: Sequence[tuple[int, float]]) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    return np.array([seed for seed, _ in terms], np.uint64), np.array([scale for _, scale in terms], np.float64)


def pieces(width: int) -> Iterator[tuple[Shard, Tensor]]:
    """A matrix of ROWS x width, whole and halved by rows and by columns: shards, and which elements they hold."""
    numbers = torch.arange(ROWS * width).view(ROWS, width)
    yield Shard.whole(numbers.numel()), numbers.view(-1)
    yield Shard(0, width, width), numbers.view(-1)
    for part, rows in enumerate(numbers.chunk(2, dim=0)):
        yield Shard(part * rows.numel(), rows.numel(), rows.numel()), rows.reshape(-1)
    for part, columns in enumerate(numbers.chunk(2, dim=1)):
        yield Shard(part * width // 2, width // 2, width), columns.reshape(-1)


def accumulated(
    weights: Tensor, terms: Sequence[tuple[int, float]], distribution: Distribution, shard: Shard
) -> Tensor:
    result = weights.clone().to(DEVICE)
    triton_kernels.accumulate(result, *columns(terms), KEY, ROUNDING_KEY, distribution, shard)
    return result


@dataclass(frozen=True)
class Move:
    """Arguments of ``lattice_add``: perturbations, updates forwards and back, and a term that does nothing."""

    sign: int = 1
    update: float = 1.3
    exact: int = 2**10

    @property
    def seeds(self) -> NDArray[np.uint64]:
        return np.array([3, 2**63 + 9, 2**64 - 1, 4], np.uint64)

    @property
    def terms(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
        exact = np.array([self.sign * whole for whole in (self.exact, 0, -7, 0)], np.int64)
        times = np.array([self.sign * count for count in (1, 1, -2, 1)], np.int64)
        return exact, np.array([0.0, self.update, -2e4 / 3, 0.0]), times

    def apply(self, weights: Tensor, distribution: Distribution, shard: Shard | None = None) -> tuple[Tensor, int]:
        result, whole = weights.clone().to(DEVICE), Shard.whole(weights.numel())
        outside = triton_kernels.lattice_add(
            result, self.seeds, *self.terms, KEY, ROUNDING_KEY, QUANTUM, LIMIT, distribution, shard or whole
        )
        return result, outside

    def apply_by_numba(self, weights: Tensor, distribution: Distribution) -> tuple[Tensor, int]:
        result = weights.clone()
        outside = kernels.lattice_add(
            flat_view(result),
            self.seeds,
            *self.terms,
            KEY,
            ROUNDING_KEY,
            QUANTUM,
            LIMIT,
            distribution,
            Shard.whole(weights.numel()),
        )
        return result, outside
