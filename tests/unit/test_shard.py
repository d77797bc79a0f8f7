"""Shards of a parameter, put together, are perturbed and updated as the whole is, to the bit: tensor parallelism."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twinpass.core import Probe, Term
from twinpass.errors import LatticeError
from twinpass.perturb import kernels
from twinpass.perturb.lattice import Lattice, LatticeTerm
from twinpass.perturb.layout import flat_view
from twinpass.perturb.noise import DISTRIBUTIONS, Distribution, name_key, reference
from twinpass.perturb.parameters import Parameters
from twinpass.perturb.shard import Shard

NAME = "layers.3.weight"
TERMS = [Term(7, 3e-3), Term(2**62 + 1, -1e-2)]
Part = tuple[slice, slice, Shard]
Cutting = Callable[[int, int, int], Iterator[Part]]


def rows(height: int, width: int, parts: int) -> Iterator[Part]:
    """As column-parallel layers are cut: rows of the weight."""
    cuts = [height * k // parts for k in range(parts + 1)]
    for first, last in itertools.pairwise(cuts):
        yield slice(first, last), slice(None), Shard.contiguous(first * width, (last - first) * width)


def columns(height: int, width: int, parts: int) -> Iterator[Part]:
    """As row-parallel layers are cut: columns of the weight."""
    cuts = [width * k // parts for k in range(parts + 1)]
    for first, last in itertools.pairwise(cuts):
        yield slice(None), slice(first, last), Shard(first, last - first, width)


def matrix(height: int, width: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(height, width, generator=torch.Generator().manual_seed(height)) * 0.1).to(dtype)


def cut(whole: Tensor, part: Part) -> Tensor:
    return whole[part[0], part[1]].clone(memory_format=torch.contiguous_format)


def together(whole: Tensor, parts: list[tuple[Part, Tensor]]) -> Tensor:
    out = torch.full_like(whole, float("nan"))
    for (high, wide, _), tensor in parts:
        out[high, wide] = tensor
    return out


def same(a: Tensor, b: Tensor) -> bool:
    return np.array_equal(flat_view(a.contiguous()), flat_view(b.contiguous()))


each_cut = pytest.mark.parametrize("cutting", [rows, columns])
each_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
each_count = pytest.mark.parametrize("parts", [1, 2, 3])


@each_cut
@each_count
@each_dtype
@each_distribution
def test_updates(cutting: Cutting, parts: int, dtype: torch.dtype, distribution: Distribution) -> None:
    whole = matrix(70, 213, dtype)
    pieces = [(part, cut(whole, part)) for part in cutting(70, 213, parts)]
    for part, tensor in pieces:
        Parameters({NAME: tensor}, shards={NAME: part[2]}).add(TERMS, distribution)
    before = whole.clone()
    Parameters({NAME: whole}).add(TERMS, distribution)
    assert not same(whole, before)
    assert same(together(whole, pieces), whole)


@each_cut
@each_dtype
@each_distribution
def test_perturbations(cutting: Cutting, dtype: torch.dtype, distribution: Distribution) -> None:
    whole, key, scales = matrix(9, 5001, dtype), name_key(NAME), np.array([1e-2, -1e-2])

    def perturbed(tensor: Tensor, shard: Shard) -> Tensor:
        out = torch.empty(2, *tensor.shape, dtype=dtype)
        view = flat_view(out).reshape(2, -1)
        kernels.perturb(flat_view(tensor), view, scales, 5, key, distribution, shard)
        return out

    expected = perturbed(whole, Shard.whole(whole.numel()))
    pieces = [(part, perturbed(cut(whole, part), part[2])) for part in cutting(9, 5001, 2)]
    for lane in range(2):
        assert same(together(whole, [(part, out[lane]) for part, out in pieces]), expected[lane])


@each_cut
@each_count
@pytest.mark.parametrize("distribution", ["binomial", "rademacher"])
def test_lattice_moves(cutting: Cutting, parts: int, distribution: Distribution) -> None:
    whole = matrix(40, 333, torch.float32)
    whole[1, 2] = 5.0  # a larger quantum than parts without it would take for themselves
    pieces = [(part, cut(whole, part)) for part in cutting(40, 333, parts)]
    lattice = Lattice(Parameters({NAME: whole}), distribution)
    moves = [LatticeTerm(Probe(3), 2.0**-10), LatticeTerm(Probe(4), 0.0, 1.7e-6)]
    start = whole.clone()
    lattice.add(moves)
    for part, tensor in pieces:
        Lattice(Parameters({NAME: tensor}, shards={NAME: part[2]}), distribution, lattice.quantum).add(moves)
    assert same(together(whole, pieces), whole)
    lattice.add([LatticeTerm(Probe(3), -(2.0**-10)), LatticeTerm(Probe(4), 0.0, 1.7e-6, -1)])
    assert same(whole, start)


@each_cut
def test_a_shard_that_would_leave_the_lattice_stays(cutting: Cutting) -> None:
    whole = matrix(40, 333, torch.float32)
    part = list(cutting(40, 333, 2))[1]
    tensor = cut(whole, part)
    lattice = Lattice(Parameters({NAME: tensor}, shards={NAME: part[2]}), "rademacher")
    before = tensor.clone()
    with pytest.raises(LatticeError, match="beyond"):
        lattice.add([LatticeTerm(Probe(3), 8.0)])
    assert same(tensor, before)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10_000), st.integers(1, 700), st.integers(0, 900), st.integers(1, 6), st.sampled_from(DISTRIBUTIONS)
)
def test_any_shard_draws_the_parameters_own_elements(
    start: int, width: int, gap: int, runs: int, distribution: Distribution
) -> None:
    shard = Shard(start, width, width + gap)
    w = np.zeros(runs * width, np.float32)
    seeds, scales = np.array([11], np.uint64), np.array([1.0])
    kernels.accumulate(w, seeds, scales, name_key(NAME), name_key(NAME, "round"), distribution, shard)
    z = reference(11, NAME, 0, start + runs * (width + gap), distribution)
    index = [start + (i // width) * (width + gap) + i % width for i in range(runs * width)]
    assert np.array_equal(w, z[index])


def test_empty_parameters_have_a_shard() -> None:
    assert Shard.whole(0) == Shard(0, 1, 1)
    Parameters({NAME: torch.empty(0)}).add(TERMS, "binomial")
