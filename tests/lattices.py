"""Small tensors on lattices, and the whole numbers that they have to be."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numeric
import numpy as np
import pytest
import torch
from hypothesis import settings
from numpy.typing import NDArray
from torch import Tensor

from twinpass.core import BASE, Lane, Term
from twinpass.perturb import noise
from twinpass.perturb.layout import flat_view
from twinpass.perturb.noise import Distribution

EPS = 2.0**-10
GRIDDED: tuple[Distribution, ...] = ("binomial", "rademacher")
DTYPES = (torch.float32, torch.float64)
BITS = {torch.float32: 24, torch.float64: 53}
property_test = settings(deadline=None, max_examples=40)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_distribution = pytest.mark.parametrize("distribution", GRIDDED)


def bits(tensor: Tensor) -> NDArray[Any]:
    return numeric.bits(flat_view(tensor))


def random_tensor(*shape: int, spread: float = 0.02, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    normal = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (normal * spread).to(dtype)


def small_model(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Three tensors on three grids; the first needs more than one of the kernel's chunks."""
    return {
        "layers.0.weight": random_tensor(50, 99, dtype=dtype),
        "norm.weight": random_tensor(130, spread=10.0, dtype=dtype, seed=1),
        "bias": torch.zeros(7, dtype=dtype),
    }


class Ledger:
    """The weights as whole numbers of quanta: base lattice plus journaled updates, independent of the kernels."""

    def __init__(self, tensors: Mapping[str, Tensor], distribution: Distribution) -> None:
        self.distribution = distribution
        self.quantum: dict[str, float] = {}
        self.units: dict[str, NDArray[np.int64]] = {}
        for name, tensor in tensors.items():
            mantissa, exponent = math.frexp(2 * float(tensor.abs().max()))
            reach = max(4.0, 2.0 ** (exponent - 1 if mantissa == 0.5 else exponent))
            self.quantum[name] = reach * 2.0 ** -BITS[tensor.dtype]
            weights = tensor.double().numpy().reshape(-1)
            self.units[name] = np.rint(weights / self.quantum[name]).astype(np.int64)

    def noise(self, name: str, seed: int) -> NDArray[np.float64]:
        return noise.reference(seed, name, 0, self.units[name].size, self.distribution).astype(np.float64)

    def add(self, terms: Sequence[Term], times: int = 1) -> None:
        for term in terms:
            for name, quantum in self.quantum.items():
                u = noise.uniform_reference(term.seed, name, 0, self.units[name].size).astype(np.float64)
                steps = np.floor(term.scale / quantum * self.noise(name, term.seed) + u)
                self.units[name] += times * steps.astype(np.int64)

    def assert_equals(self, tensors: Mapping[str, Tensor], lane: Lane = BASE) -> None:
        for name, tensor in tensors.items():
            units = self.units[name]
            if lane.probe is not None:
                quarter_steps = int(lane.scale / (4 * self.quantum[name]))
                units = units + quarter_steps * (4 * self.noise(name, lane.probe.seed)).astype(np.int64)
            expected = torch.from_numpy(units * self.quantum[name]).to(tensor.dtype)
            assert np.array_equal(bits(tensor), bits(expected)), name


def journal(step: int, q: int, lr: float = 1e-4) -> list[Term]:
    """An update as training makes it: one term a probe, every tenth with a gradient of zero."""
    seeds = [noise.derive_seed(1, "probe", step, k) for k in range(q)]
    gradients = np.random.default_rng(step).normal(0, 1, q) * (step % 10 != 9)
    return [Term(seed, -lr * float(g) / q) for seed, g in zip(seeds, gradients, strict=True)]
