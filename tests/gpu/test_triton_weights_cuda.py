"""Many parameters at once, weights on a lattice, and what the Triton kernels refuse."""

from dataclasses import replace

import numeric
import numpy as np
import pytest
import torch
from kernels_on import (
    DEVICE,
    GRIDDED,
    KEY,
    LIMIT,
    QUANTUM,
    ROUNDING_KEY,
    ROWS,
    SEEDS,
    TERMS,
    Move,
    accumulated,
    bits,
    columns,
    each_distribution,
    each_width,
    lattice_weights,
    pieces,
    random_weights,
)
from torch import Tensor

from twinpass.core import BASE, Lane, Probe, Term
from twinpass.errors import ModelError
from twinpass.perturb import kernels, noise, triton_kernels
from twinpass.perturb.backend import NUMBA, Backend, triton
from twinpass.perturb.inplace import InPlaceWeights
from twinpass.perturb.lattice import Lattice
from twinpass.perturb.layout import flat_view
from twinpass.perturb.noise import Distribution
from twinpass.perturb.parameters import Parameters
from twinpass.perturb.shard import Shard

each_gridded = pytest.mark.parametrize("distribution", GRIDDED)
SIZES = {"a": 4608, "b": 1, "c": 1536, "d": 129, "e": 2048}
"""Parameters that lie back to back: one unit of noise, less, more, and more than a tile."""
each_count = pytest.mark.parametrize("lanes", [1, 2, 5])

one_thread = numeric.one_thread


class TestEach:
    """Many small parameters in one call."""

    bounds = np.cumsum([0, *SIZES.values()])
    keys = np.array([noise.name_key(name) for name in SIZES], np.uint64)

    @pytest.mark.table
    @each_distribution
    @each_count
    @pytest.mark.parametrize("seed", SEEDS)
    def test_perturb_writes_numbas_bits(self, seed: int, lanes: int, distribution: Distribution) -> None:
        weights, scales = random_weights(int(self.bounds[-1]), torch.float32), np.linspace(-0.5, 0.5, lanes)
        out = torch.full((lanes, len(weights)), float("nan"), device=DEVICE)
        expected = np.empty(out.shape, np.float32)
        call = (scales, seed, self.keys, distribution)
        triton_kernels.perturb_each(weights.to(DEVICE), self.bounds, out, *call)
        kernels.perturb_each(flat_view(weights), self.bounds, expected, *call)
        assert np.array_equal(bits(out), bits(torch.from_numpy(expected)))

    @each_distribution
    def test_accumulate_writes_numbas_bits(self, distribution: Distribution) -> None:
        weights = random_weights(int(self.bounds[-1]), torch.float32)
        moved, expected = weights.clone().to(DEVICE), weights.clone()
        call = (self.bounds, *columns(TERMS), self.keys, distribution)
        triton_kernels.accumulate_each(moved, *call)
        kernels.accumulate_each(flat_view(expected), *call)
        assert np.array_equal(bits(moved), bits(expected))
        assert not np.array_equal(bits(moved), bits(weights))

    @each_distribution
    def test_what_lies_around_stays(self, distribution: Distribution) -> None:
        memory = torch.full((int(self.bounds[-1]) + 2,), 7.0, device=DEVICE)
        triton_kernels.accumulate_each(memory[1:-1], self.bounds, *columns(TERMS), self.keys, distribution)
        assert memory[0] == memory[-1] == 7

    def test_scales_of_zero_keep_their_sign(self) -> None:
        for zero in (0.0, -0.0, 0.0):
            weights, out = torch.full((4,), -0.0, device=DEVICE), torch.empty(1, 4, device=DEVICE)
            expected = np.empty((1, 4), np.float32)
            scales = np.array([zero])
            triton_kernels.perturb(weights, out, scales, 3, KEY, "rademacher", Shard.whole(4))
            kernels.perturb(flat_view(weights.cpu()), expected, scales, 3, KEY, "rademacher", Shard.whole(4))
            assert np.array_equal(bits(out), bits(torch.from_numpy(expected)))


class TestLattice:
    @pytest.mark.table
    @each_gridded
    @pytest.mark.parametrize("count", [1, 130, 3001])
    def test_writes_numbas_bits(self, count: int, distribution: Distribution) -> None:
        weights = lattice_weights(count)
        moved, outside = Move().apply(weights, distribution)
        expected, _ = Move().apply_by_numba(weights, distribution)
        assert outside == 0
        assert np.array_equal(bits(moved), bits(expected))
        assert not np.array_equal(bits(moved), bits(weights))

    @each_gridded
    @pytest.mark.parametrize("update", [0.3, 4e6 / 7])
    def test_undo_restores_the_bits(self, update: float, distribution: Distribution) -> None:
        weights = lattice_weights(2500)
        moved, _ = Move(1, update).apply(weights, distribution)
        back, _ = Move(-1, update).apply(moved, distribution)
        assert np.array_equal(bits(back), bits(weights))

    @pytest.mark.table
    @each_gridded
    @each_width
    def test_shards_put_together_are_the_whole(self, width: int, distribution: Distribution) -> None:
        weights = lattice_weights(ROWS * width)
        whole, _ = Move().apply_by_numba(weights, distribution)
        for shard, held in pieces(width):
            moved, outside = Move().apply(weights[held], distribution, shard)
            assert outside == 0
            assert np.array_equal(bits(moved), bits(whole[held])), shard

    @each_gridded
    @pytest.mark.parametrize("side", [1, -1])
    def test_overflow_moves_nothing(self, side: int, distribution: Distribution) -> None:
        """Tiles that would fit lie before and behind the ones that would not."""
        weights = lattice_weights(6500)
        weights[2500:3000] = side * 2.0
        move = Move(1, 5e6, 2**21)
        moved, outside = move.apply(weights, distribution)
        assert outside == move.apply_by_numba(weights, distribution)[1] > 0
        assert np.array_equal(bits(moved), bits(weights))

    def test_the_edge_of_the_range_is_inside(self) -> None:
        moved = torch.full((500,), 2.0, device=DEVICE)
        seed, exact, update, times = np.array([1], np.uint64), np.array([2**21]), np.zeros(1), np.ones(1, np.int64)
        place = Shard.whole(500)
        outside = triton_kernels.lattice_add(
            moved, seed, exact, update, times, KEY, ROUNDING_KEY, QUANTUM, LIMIT, "rademacher", place
        )
        assert outside == 0
        assert set(moved.tolist()) == {0.0, 4.0}

    def test_an_update_of_one_quantum_is_made(self) -> None:
        weights, move = lattice_weights(300), Move(1, 1.0, 0)
        moved, _ = move.apply(weights, "binomial")
        assert np.array_equal(bits(moved), bits(move.apply_by_numba(weights, "binomial")[0]))

    @each_gridded
    def test_zeros_have_numbas_signs(self, distribution: Distribution) -> None:
        weights = torch.tensor([0.0, -0.0, QUANTUM, -QUANTUM]).repeat(200)
        move = Move(1, -1.0, 0)
        moved, _ = move.apply(weights, distribution)
        assert np.array_equal(bits(moved), bits(move.apply_by_numba(weights, distribution)[0]))
        assert not (bits(moved) == 2**31).any()


class TestRefusals:
    def test_another_dtype(self) -> None:
        weights = torch.zeros(4, dtype=torch.float64, device=DEVICE)
        with pytest.raises(ModelError, match=r"torch\.float64: .* must be torch\.float32 or torch\.bfloat16"):
            triton_kernels.accumulate(weights, *columns(TERMS), KEY, ROUNDING_KEY, "binomial", Shard.whole(4))

    def test_a_view_with_gaps(self) -> None:
        weights = torch.zeros(4, 4, device=DEVICE)[:, ::2]
        with pytest.raises(ModelError, match=r"must be contiguous; replace them"):
            triton_kernels.accumulate(weights, *columns(TERMS), KEY, ROUNDING_KEY, "binomial", Shard.whole(8))

    def test_many_parameters_in_bfloat16(self) -> None:
        weights, bounds, keys = torch.zeros(4, dtype=torch.bfloat16, device=DEVICE), np.array([0, 4]), TestEach.keys[:1]
        with pytest.raises(ModelError, match=r"torch\.bfloat16: .* it must be torch\.float32"):
            triton_kernels.accumulate_each(weights, bounds, *columns(TERMS), keys, "binomial")

    def test_what_needs_float32(self) -> None:
        weights = torch.zeros(4, dtype=torch.bfloat16, device=DEVICE)
        with pytest.raises(ModelError, match=r"torch\.bfloat16: .* it must be torch\.float32"):
            Move().apply(weights, "binomial")
        with pytest.raises(ModelError, match=r"torch\.bfloat16: .* it must be torch\.float32"):
            triton_kernels.fill(weights, 1, KEY, 0, "binomial")

    def test_lanes_of_another_dtype(self) -> None:
        weights, lanes = torch.zeros(4, device=DEVICE), torch.zeros(1, 4, dtype=torch.bfloat16, device=DEVICE)
        with pytest.raises(ModelError, match=r"torch\.bfloat16: .* it must be torch\.float32"):
            triton_kernels.perturb(weights, lanes, np.ones(1), 1, KEY, "binomial", Shard.whole(weights.numel()))

    def test_a_quantum_that_is_no_power_of_two(self) -> None:
        weights, move = torch.zeros(4, device=DEVICE), Move()
        with pytest.raises(ValueError, match=r"a power of two, not 0\.3"):
            triton_kernels.lattice_add(
                weights, move.seeds, *move.terms, KEY, ROUNDING_KEY, 0.3, LIMIT, "binomial", Shard.whole(4)
            )

    def test_a_shard_that_does_not_fit(self) -> None:
        with pytest.raises(ValueError, match=r"10 elements are not whole rows of Shard\(start=0, width=4, stride=8\)"):
            accumulated(torch.zeros(10), TERMS, "binomial", Shard(0, 4, 8))


class TestWeightsInPlace:
    """What a server with a GPU does to its own weights: the lattice walk, by these kernels."""

    def walked(self, backend: Backend, device: str) -> list[Tensor]:
        live = {"a": lattice_weights(700).to(device), "b": (lattice_weights(513) / 3).to(device)}
        weights = InPlaceWeights(Lattice(Parameters(live, backend=backend), "binomial"))
        seen = []
        for lane in (Lane(Probe(3), 1, 2.0**-9), Lane(Probe(3), -1, 2.0**-9), BASE):
            weights.update([Term(8, 1e-4)])
            weights.move_to(lane)
            seen += [tensor.cpu().clone() for tensor in live.values()]
        return seen

    def test_walk_as_numbas(self) -> None:
        ours = replace(triton(), devices=(DEVICE,))
        for a, b in zip(self.walked(ours, DEVICE), self.walked(NUMBA, "cpu"), strict=True):
            assert np.array_equal(bits(a), bits(b))
