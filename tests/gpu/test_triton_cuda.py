"""The Triton kernels draw and write the bits that NumPy and Numba do: on a CUDA device, or under Triton's interpreter.

``make test-interpreted`` runs this file in a process with ``TRITON_INTERPRET=1``, which Triton reads when imported.
"""

from collections.abc import Sequence

import numeric
import numpy as np
import pytest
import torch
import triton_calls
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_on import (
    DEVICE,
    INTERPRETED,
    KEY,
    NAME,
    ROUNDING_KEY,
    ROWS,
    SEEDS,
    TERMS,
    accumulated,
    bits,
    columns,
    each_distribution,
    each_width,
    pieces,
    random_weights,
)
from torch import Tensor

from twinpass.perturb import kernels, noise, triton_kernels
from twinpass.perturb.backend import NUMBA, triton
from twinpass.perturb.layout import flat_view
from twinpass.perturb.noise import DISTRIBUTIONS, Distribution
from twinpass.perturb.shard import Shard

SPANS = (
    (0, 0), (0, 1), (1, 3), (127, 2), (128, 128), (129, 5000), (4095, 2), (2**31 - 5, 300), (2**40 + 77, 2300),
)  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
one_thread = numeric.one_thread


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


def accumulated_by_numba(weights: Tensor, terms: Sequence[tuple[int, float]], distribution: Distribution) -> Tensor:
    result = weights.clone()
    kernels.accumulate(flat_view(result), *columns(terms), KEY, ROUNDING_KEY, distribution, Shard.whole(len(weights)))
    return result


def test_what_is_said_of_the_kernels() -> None:
    """No weights are formed where they are multiplied, and a matrix is taken at a time."""
    backend = triton()
    assert (backend.devices, backend.dtypes, backend.fuses) == (("cuda",), DTYPES, False)
    assert backend.growth > NUMBA.growth == 1
    rows = torch.tensor([3, 0], dtype=torch.int32)
    found = backend.index(rows)
    assert (found.dtype, found.tolist()) == (torch.int64, [3, 0])
    assert (NUMBA.index(rows).dtype, NUMBA.index(rows).tolist()) == (np.int64, [3, 0])


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
