"""The Triton kernels draw and write the bits that NumPy and Numba do: on a CUDA device, or under Triton's interpreter.

``make test-interpreted`` runs this file in a process with ``TRITON_INTERPRET=1``, which Triton reads when imported.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numeric
import numpy as np
import pytest
import torch
import triton_calls
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from twinpass.core import BASE, Lane, Probe, Term
from twinpass.errors import ModelError
from twinpass.perturb import kernels, noise, triton_kernels
from twinpass.perturb.backend import NUMBA, Backend, triton
from twinpass.perturb.inplace import InPlaceWeights
from twinpass.perturb.lattice import Lattice
from twinpass.perturb.layout import flat_view
from twinpass.perturb.noise import DISTRIBUTIONS, Distribution
from twinpass.perturb.parameters import Parameters
from twinpass.perturb.shard import Shard

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("no CUDA device; TRITON_INTERPRET=1 runs these on the CPU", allow_module_level=True)

DEVICE = "cpu" if INTERPRETED else "cuda"
NAME = "model.layers.0.self_attn.q_proj.weight"
KEY, ROUNDING_KEY = noise.name_key(NAME), noise.name_key(NAME, "round")
SEEDS = (0, 2**31 + 7, 2**63 + 12345, 2**64 - 1)
SPANS = (
    (0, 0), (0, 1), (1, 3), (127, 2), (128, 128), (129, 5000), (4095, 2), (2**31 - 5, 300), (2**40 + 77, 2300),
)  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16)
TERMS = ((3, 1e-3), (2**63 + 9, -0.2), (0, 2.0**-12), (2**64 - 1, 0.0), (3, -0.07))
GRIDDED: tuple[Distribution, ...] = ("binomial", "rademacher")
QUANTUM, LIMIT = 2.0**-22, 2**24
ROWS, WIDTHS = 4, (250, 384)

each_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)
each_gridded = pytest.mark.parametrize("distribution", GRIDDED)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_width = pytest.mark.parametrize("width", WIDTHS)

one_thread = numeric.one_thread


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


def perturbed(weights: Tensor, scales: Sequence[float], seed: int, start: int, distribution: Distribution) -> Tensor:
    out = torch.zeros(len(scales), len(weights), dtype=weights.dtype, device=DEVICE)
    shard = Shard.contiguous(start, len(weights))
    triton_kernels.perturb(weights.to(DEVICE), out, np.array(scales), seed, KEY, distribution, shard)
    return out


def perturbed_by_numba(
    weights: Tensor, scales: Sequence[float], seed: int, start: int, distribution: Distribution
) -> Tensor:
    out = torch.zeros(len(scales), len(weights), dtype=weights.dtype)
    view = flat_view(out).reshape(out.shape)
    shard = Shard.contiguous(start, len(weights))
    kernels.perturb(flat_view(weights), view, np.array(scales), seed, KEY, distribution, shard)
    return out


def accumulated(
    weights: Tensor, terms: Sequence[tuple[int, float]], distribution: Distribution, shard: Shard
) -> Tensor:
    result = weights.clone().to(DEVICE)
    triton_kernels.accumulate(result, *columns(terms), KEY, ROUNDING_KEY, distribution, shard)
    return result


def accumulated_by_numba(weights: Tensor, terms: Sequence[tuple[int, float]], distribution: Distribution) -> Tensor:
    result = weights.clone()
    kernels.accumulate(flat_view(result), *columns(terms), KEY, ROUNDING_KEY, distribution, Shard.whole(len(weights)))
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


def test_what_is_said_of_the_kernels() -> None:
    """No weights are formed where they are multiplied, and a matrix is taken at a time."""
    backend = triton()
    assert (backend.devices, backend.dtypes, backend.fuses) == (("cuda",), DTYPES, False)
    assert backend.growth > NUMBA.growth


@each_distribution
def test_two_rows_may_begin_within_a_unit(distribution: Distribution) -> None:
    """The second begins one element later in its unit than the first, and so reaches into one unit more."""
    weights, out = torch.ones(2 * noise.UNIT), torch.zeros(1, 2 * noise.UNIT, device=DEVICE)
    shard = Shard(0, noise.UNIT, noise.UNIT + 1)
    triton_kernels.perturb(weights.to(DEVICE), out, np.ones(1), 5, KEY, distribution, shard)
    z = noise.reference(5, NAME, 0, 2 * noise.UNIT + 1, distribution)
    expected = np.float32(1) + np.delete(z, noise.UNIT)
    assert np.array_equal(bits(out[0]), numeric.bits(expected))


class TestFill:
    @each_distribution
    @pytest.mark.parametrize("seed", SEEDS)
    def test_returns_the_bits_of_the_reference(self, seed: int, distribution: Distribution) -> None:
        for start, count in SPANS:
            out = torch.full((count,), float("nan"), device=DEVICE)
            triton_kernels.fill(out, seed, KEY, start, distribution)
            expected = noise.reference(seed, NAME, start, start + count, distribution)
            assert np.array_equal(bits(out), numeric.bits(expected)), (start, count)

    @settings(deadline=None, max_examples=15)
    @given(
        st.integers(0, 2**64 - 1),
        st.text(max_size=9),
        st.integers(0, 2**48),
        st.integers(1, 4500),
        st.sampled_from(DISTRIBUTIONS),
    )
    def test_returns_the_bits_of_the_reference_anywhere(
        self, seed: int, name: str, start: int, count: int, distribution: Distribution
    ) -> None:
        out = torch.full((count + 2,), 7.0, device=DEVICE)
        triton_kernels.fill(out[1:-1], seed, noise.name_key(name), start, distribution)
        expected = noise.reference(seed, name, start, start + count, distribution)
        assert np.array_equal(bits(out[1:-1]), numeric.bits(expected))
        assert out[0] == out[-1] == 7

    def test_the_most_extreme_words_give_the_same_normals(self) -> None:
        """An angle of 2**29 (modulo a quarter turn) has a sine of zero, which two of the quarters negate."""
        corners = (0, 1, 2**23, 2**29 - 1, 2**29, 2**29 + 1, 2**30 - 1)
        angles = [corner + (quarter << 30) for corner in corners for quarter in range(4)]
        radii = [0, 1, 2**24 - 1, 2**31, 3037000499, 2**32 - 2**8 - 1, 2**32 - 2**8, 2**32 - 1]
        words = np.array([(radius, angle) for radius in radii for angle in angles], np.uint32)
        pairs = triton_calls.box_muller(torch.from_numpy(words.view(np.int32)).to(DEVICE))
        expected = np.stack(noise._box_muller(words[:, 0], words[:, 1]), axis=-1)
        assert np.array_equal(bits(pairs), numeric.bits(expected.reshape(-1)))
        assert (np.signbit(expected) & (expected == 0)).any()


class TestPerturb:
    @pytest.mark.table
    @each_dtype
    @each_distribution
    @pytest.mark.parametrize(("start", "count"), [(0, 1), (77, 3000), (2**33 + 1, 4096)])
    def test_writes_numbas_bits(self, start: int, count: int, dtype: torch.dtype, distribution: Distribution) -> None:
        weights, scales = random_weights(count, dtype), (2.0**-10, -(2.0**-10), 0.0, 1e-3, -0.7)
        before = bits(weights).copy()
        lanes = perturbed(weights, scales, 2**63 + 11, start, distribution)
        assert np.array_equal(bits(lanes), bits(perturbed_by_numba(weights, scales, 2**63 + 11, start, distribution)))
        assert np.array_equal(bits(weights), before)

    @each_distribution
    def test_rounds_the_product_and_the_sum(self, distribution: Distribution) -> None:
        """An FMA would round once: these weights are chosen to cancel, so that it would show in most elements."""
        z = noise.reference(5, NAME, 0, 2000, distribution)
        scale = np.float32(0.1)
        (lane,) = perturbed(torch.from_numpy(-(scale * z)), (0.1,), 5, 0, distribution)
        assert not lane.any()

    @pytest.mark.parametrize(
        ("weight", "down", "up"), [(1.0, 1 - 2**-8, 1 + 2**-7), (-1.0, -1 - 2**-7, -1 + 2**-8), (0.0, -(2**-8), 2**-8)]
    )
    def test_bfloat16_ties_round_away_from_zero(self, weight: float, down: float, up: float) -> None:
        (lane,) = perturbed(torch.full((256,), weight, dtype=torch.bfloat16), (2.0**-8,), 8, 0, "rademacher")
        signs = noise.reference(8, NAME, 0, 256, "rademacher")
        assert np.array_equal(lane.float().cpu().numpy(), np.where(signs > 0, up, down).astype(np.float32))

    @each_dtype
    def test_nan_stays_nan(self, dtype: torch.dtype) -> None:
        """Even one of all ones, which a GPU makes: rounding it up as a number would give -0."""
        ones = np.array([2**63 - 1]).view(np.float64)
        assert perturbed(torch.ones(200, dtype=dtype), ones.tolist(), 1, 0, "binomial").isnan().all()

    @each_dtype
    def test_no_lanes_and_no_weights(self, dtype: torch.dtype) -> None:
        assert perturbed(random_weights(5, dtype), (), 1, 0, "binomial").shape == (0, 5)
        assert perturbed(random_weights(0, dtype), (1.0,), 1, 3, "binomial").shape == (1, 0)


class TestGather:
    @pytest.mark.table
    @each_dtype
    @each_distribution
    @pytest.mark.parametrize("width", [1, 100, 2300])
    def test_is_the_rows_of_the_whole(self, width: int, dtype: torch.dtype, distribution: Distribution) -> None:
        table = random_weights(30 * width, dtype)
        (whole,) = perturbed_by_numba(table, (-0.03,), 2**63 + 5, 0, distribution)
        for rows in (torch.tensor([29, 0, 7, 7]), torch.tensor([7]), torch.tensor([], dtype=torch.int64)):
            out = torch.zeros(len(rows), width, dtype=dtype, device=DEVICE)
            place = (-0.03, 2**63 + 5, KEY, distribution)
            triton_kernels.gather(table.view(30, width).to(DEVICE), rows.to(DEVICE), out, *place)
            assert np.array_equal(bits(out), bits(whole.view(30, width)[rows]))


class TestAccumulate:
    @pytest.mark.table
    @each_dtype
    @each_distribution
    @pytest.mark.parametrize("count", [1, 127, 3001])
    def test_writes_numbas_bits(self, count: int, dtype: torch.dtype, distribution: Distribution) -> None:
        weights = random_weights(count, dtype)
        moved = accumulated(weights, TERMS, distribution, Shard.whole(count))
        assert np.array_equal(bits(moved), bits(accumulated_by_numba(weights, TERMS, distribution)))

    @pytest.mark.table
    @each_dtype
    @each_distribution
    @each_width
    def test_shards_put_together_are_the_whole(
        self, width: int, dtype: torch.dtype, distribution: Distribution
    ) -> None:
        weights = random_weights(ROWS * width, dtype)
        whole = accumulated_by_numba(weights, TERMS[1:2], distribution)
        for shard, held in pieces(width):
            moved = accumulated(weights[held], TERMS[1:2], distribution, shard)
            assert np.array_equal(bits(moved), bits(whole[held])), shard

    @pytest.mark.table
    @pytest.mark.parametrize("shard", [Shard(3, 7, 1000), Shard(2**40 + 1, 2300, 2**33 + 5), Shard(0, 1, 1)])
    @each_distribution
    def test_any_start_and_stride(self, shard: Shard, distribution: Distribution) -> None:
        moved = accumulated(torch.zeros(3 * shard.width), [(9, 1.0)], distribution, shard)
        starts = [shard.start + row * shard.stride for row in range(3)]
        z = [noise.reference(9, NAME, start, start + shard.width, distribution) for start in starts]
        assert np.array_equal(moved.cpu().numpy(), np.concatenate(z))

    @each_dtype
    def test_no_terms_and_no_weights(self, dtype: torch.dtype) -> None:
        weights = random_weights(40, dtype)
        assert np.array_equal(bits(accumulated(weights, [], "binomial", Shard.whole(40))), bits(weights))
        assert accumulated(weights[:0], TERMS, "binomial", Shard.whole(0)).numel() == 0


SIZES = {"a": 4608, "b": 1, "c": 1536, "d": 129, "e": 2048}
"""Parameters that lie back to back: one unit of noise, less, more, and more than a tile."""

each_count = pytest.mark.parametrize("lanes", [1, 2, 5])


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

    @each_gridded
    def test_zeros_have_numbas_signs(self, distribution: Distribution) -> None:
        weights = torch.tensor([0.0, -0.0, QUANTUM, -QUANTUM]).repeat(200)
        move = Move(1, -1.0, 0)
        moved, _ = move.apply(weights, distribution)
        assert np.array_equal(bits(moved), bits(move.apply_by_numba(weights, distribution)[0]))
        assert not (bits(moved) == 2**31).any()


class TestPositions:
    @settings(deadline=None, max_examples=200)
    @given(st.integers(0, 2**40), st.integers(1, 9000), st.integers(0, 300), st.integers(1, 5))
    def test_tiles_reach_the_end_of_every_row(self, start: int, width: int, gap: int, rows: int) -> None:
        shard = Shard(start, width, width + gap)
        tiling = triton_kernels.Tiling.of(rows * width, shard)
        assert tiling.rows == rows
        for row in range(rows):
            begin = start + row * shard.stride
            assert begin // 128 * 128 + tiling.across * tiling.tile >= begin + width

    @pytest.mark.parametrize(("width", "rows"), [(2**33, (0, 1)), (2**20, (0, 5000))], ids=["wide", "many"])
    def test_memory_beyond_the_range_of_32_bits(self, width: int, rows: tuple[int, int]) -> None:
        """Half of a logical matrix, by columns: some programs say where their tiles are."""
        across = width // 2048
        wanted = [(row, tile) for row in rows for tile in (0, across - 1)]
        programs = [row * across + tile for row, tile in wanted]
        found = triton_calls.places(DEVICE, Shard(width, width, 2 * width), across, programs, 2048)
        expected = [[(2 * row + 1) * width + tile * 2048, row * width + tile * 2048, 2048] for row, tile in wanted]
        assert found.tolist() == expected

    @pytest.mark.skipif(INTERPRETED, reason="takes 4 GiB and minutes without a GPU")
    def test_a_tensor_of_more_than_2_to_31_elements(self) -> None:
        count, seen = 2**31 + 3000, 5000
        weights = torch.zeros(count, dtype=torch.bfloat16, device=DEVICE)
        triton_kernels.accumulate(
            weights, *columns([(9, 1.0)]), KEY, ROUNDING_KEY, "binomial", Shard.whole(weights.numel())
        )
        expected = noise.reference(9, NAME, count - seen, count, "binomial")
        assert np.array_equal(weights[-seen:].float().cpu().numpy(), expected)


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
