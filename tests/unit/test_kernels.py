"""The kernels add the reference's bits to weights, whatever the slice, the order, the split and the dtype."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numeric
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numeric import Array, bits

from twinpass.perturb import kernels, noise
from twinpass.perturb.noise import DISTRIBUTIONS, F32, Distribution
from twinpass.perturb.shard import Shard

NAME = "model.layers.0.self_attn.q_proj.weight"
DTYPES = ("float32", "float64", "bfloat16")
seeds = st.integers(0, 2**64 - 1)
distributions = st.sampled_from(DISTRIBUTIONS)
property_test = settings(deadline=None, max_examples=60)
each_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
one_thread, threads = numeric.one_thread, numeric.threads


def widen(weights: Array) -> Array:
    """The numbers that a kernel computes with: bfloat16 bits become float32."""
    return (weights.astype(np.uint32) << 16).view(np.float32) if weights.dtype == np.uint16 else weights


def narrow(values: Array, like: Array, uniform: F32 | None = None) -> Array:
    """Rounds to ``like``'s dtype: bfloat16 to nearest (ties away from zero), or stochastically with ``uniform``."""
    if like.dtype != np.uint16:
        return values
    push = np.uint32(2**15) if uniform is None else (uniform.astype(np.float64) * 2**16).astype(np.uint32)
    return ((values.view(np.uint32) + push) >> 16).astype(np.uint16)


def moved(weights: Array, scale: float, z: F32, uniform: F32 | None = None) -> Array:
    """``weights + scale * z`` in the weights' own precision (float32 for bfloat16)."""
    wide = widen(weights)
    real = wide.dtype.type
    return narrow(wide + real(scale) * z.astype(real), weights, uniform)


def random_weights(count: int, dtype: str, seed: int = 0) -> Array:
    values = np.random.default_rng(seed).normal(0, 0.5, count)
    if dtype == "bfloat16":
        return narrow(values.astype(np.float32), np.empty(0, np.uint16))
    return values.astype(dtype)


def perturbed(
    weights: Array, scales: Sequence[float], seed: int, start: int, distribution: Distribution, name: str = NAME
) -> Array:
    out = np.zeros((len(scales), len(weights)), weights.dtype)
    shard = Shard.contiguous(start, len(weights))
    kernels.perturb(weights, out, np.array(scales, np.float64), seed, noise.name_key(name), distribution, shard)
    return out


def accumulated(weights: Array, terms: Sequence[tuple[int, float]], distribution: Distribution) -> Array:
    result = weights.copy()
    kernels.accumulate(
        result,
        np.array([seed for seed, _ in terms], np.uint64),
        np.array([scale for _, scale in terms], np.float64),
        noise.name_key(NAME),
        noise.name_key(NAME, "round"),
        distribution,
        Shard.whole(len(weights)),
    )
    return result


class TestPerturb:
    @each_dtype
    @each_distribution
    @pytest.mark.parametrize(("start", "count"), [(0, 1), (0, 9001), (77, 10_000), (2**33 + 1, 4096)])
    def test_is_weights_plus_scaled_noise(self, start: int, count: int, dtype: str, distribution: Distribution) -> None:
        weights, scales = random_weights(count, dtype), (2.0**-10, -(2.0**-10), 0.0, 1e-3, -0.7)
        lanes = perturbed(weights, scales, 11, start, distribution)
        z = noise.reference(11, NAME, start, start + count, distribution)
        for lane, scale in zip(lanes, scales, strict=True):
            assert np.array_equal(bits(lane), bits(moved(weights, scale, z))), scale

    @each_dtype
    @each_distribution
    def test_tiles_in_any_order_make_the_whole(self, dtype: str, distribution: Distribution) -> None:
        weights, scales = random_weights(20_000, dtype), (1e-3, -1e-3)
        whole = perturbed(weights, scales, 2, 500, distribution)
        for start, stop in ((8192, 20_000), (1, 127), (127, 8192), (0, 1)):
            tile = perturbed(weights[start:stop], scales, 2, 500 + start, distribution)
            assert np.array_equal(bits(tile), bits(whole[:, start:stop]))

    @property_test
    @given(st.lists(st.integers(0, 12_000), max_size=8), seeds, distributions, st.sampled_from(DTYPES))
    def test_any_split_gives_the_same_bits(
        self, cuts: list[int], seed: int, distribution: Distribution, dtype: str
    ) -> None:
        weights = random_weights(12_000, dtype)
        edges = pairwise([0, *sorted(cuts), 12_000])
        tiles = [perturbed(weights[start:stop], (0.01,), seed, start, distribution)[0] for start, stop in edges]
        assert np.array_equal(bits(np.concatenate(tiles)), bits(perturbed(weights, (0.01,), seed, 0, distribution)[0]))

    @each_dtype
    @each_distribution
    def test_any_number_of_threads(self, threads: int, dtype: str, distribution: Distribution) -> None:
        weights = random_weights(50_000, dtype)
        z = noise.reference(4, NAME, 33, 50_033, distribution)
        (lane,) = perturbed(weights, (0.02,), 4, 33, distribution)
        assert np.array_equal(bits(lane), bits(moved(weights, 0.02, z)))

    @each_dtype
    def test_leaves_the_weights_alone(self, dtype: str) -> None:
        weights = random_weights(5000, dtype)
        before = weights.copy()
        perturbed(weights, (0.5, -0.5), 1, 0, "binomial")
        assert np.array_equal(bits(weights), bits(before))

    @each_distribution
    def test_bfloat16_rounds_like_torch_except_for_ties(self, distribution: Distribution) -> None:
        weights = random_weights(20_000, "bfloat16")
        exact = widen(weights) + np.float32(0.01) * noise.reference(6, NAME, 0, 20_000, distribution)
        (lane,) = perturbed(weights, (0.01,), 6, 0, distribution)
        torchs = torch.from_numpy(exact).to(torch.bfloat16).view(torch.uint16).numpy()
        ties = (bits(exact) & 0xFFFF) == 0x8000
        assert np.array_equal(lane[~ties], torchs[~ties])
        assert not ties.all()

    @pytest.mark.parametrize(
        ("weight", "down", "up"),
        [
            (1.0, 1 - 2**-8, 1 + 2**-7),
            (-1.0, -1 - 2**-7, -1 + 2**-8),
            (1 + 2**-7, 1 + 2**-7, 1 + 2**-6),
            (4.0, 4.0, 4.0),
            (0.0, -(2**-8), 2**-8),
        ],
    )
    def test_bfloat16_ties_round_away_from_zero(self, weight: float, down: float, up: float) -> None:
        """One sign of 2**-8 is half a step of bfloat16 above 1."""
        weights = narrow(np.full(256, weight, np.float32), np.empty(0, np.uint16))
        lane = widen(perturbed(weights, (2.0**-8,), 8, 0, "rademacher")[0])
        signs = noise.reference(8, NAME, 0, 256, "rademacher")
        assert np.array_equal(lane, np.where(signs > 0, up, down).astype(np.float32))


class TestGather:
    @each_dtype
    @each_distribution
    @pytest.mark.parametrize("width", [1, 7, 100, 128, 4097])
    def test_is_the_rows_of_the_whole(self, width: int, dtype: str, distribution: Distribution) -> None:
        table = random_weights(30 * width, dtype).reshape(30, width)
        rows = np.array([29, 0, 7, 7, 13, 1, 0], np.int64)
        out = np.zeros((len(rows), width), table.dtype)
        kernels.gather(table, rows, out, -0.03, 2**63 + 5, noise.name_key(NAME), distribution)
        z = noise.reference(2**63 + 5, NAME, 0, table.size, distribution)
        whole = moved(table.reshape(-1), -0.03, z).reshape(30, width)
        assert np.array_equal(bits(out), bits(whole[rows]))
        lane = perturbed(table.reshape(-1), (-0.03,), 2**63 + 5, 0, distribution).reshape(30, width)
        assert np.array_equal(bits(out), bits(lane[rows]))

    def test_no_rows(self) -> None:
        table, around = random_weights(64, "float32").reshape(8, 8), np.full((4, 8), 7, np.float32)
        before = bits(table).copy()
        kernels.gather(table, np.zeros(0, np.int64), around[2:2], 1.0, 1, noise.name_key(NAME), "binomial")
        assert np.array_equal(bits(table), before)
        assert (around == 7).all()


class TestAccumulate:
    TERMS = ((3, 1e-3), (2**63 + 9, -0.2), (0, 2.0**-12), (3, -1e-3), (2**64 - 1, 0.0))

    @each_dtype
    @each_distribution
    @pytest.mark.parametrize("count", [1, 127, 4096, 10_001])
    def test_is_the_terms_one_after_the_other(self, count: int, dtype: str, distribution: Distribution) -> None:
        weights = random_weights(count, dtype)
        expected = one_by_one = weights
        for seed, scale in self.TERMS:
            z = noise.reference(seed, NAME, 0, count, distribution)
            expected = moved(expected, scale, z, noise.uniform_reference(seed, NAME, 0, count))
            one_by_one = accumulated(one_by_one, [(seed, scale)], distribution)
        together = accumulated(weights, self.TERMS, distribution)
        assert np.array_equal(bits(together), bits(one_by_one))
        assert np.array_equal(bits(together), bits(expected))

    @each_dtype
    @each_distribution
    def test_any_number_of_threads(self, threads: int, dtype: str, distribution: Distribution) -> None:
        weights = random_weights(50_000, dtype)
        expected = weights
        for seed, scale in self.TERMS[:2]:
            z = noise.reference(seed, NAME, 0, 50_000, distribution)
            expected = moved(expected, scale, z, noise.uniform_reference(seed, NAME, 0, 50_000))
        assert np.array_equal(bits(accumulated(weights, self.TERMS[:2], distribution)), bits(expected))

    @property_test
    @given(
        st.lists(st.tuples(seeds, st.floats(-1, 1, width=32)), min_size=1, max_size=6),
        st.integers(0, 6),
        distributions,
        st.sampled_from(DTYPES),
    )
    def test_any_split_of_the_terms_gives_the_same_bits(
        self, terms: list[tuple[int, float]], cut: int, distribution: Distribution, dtype: str
    ) -> None:
        weights = random_weights(5000, dtype)
        halves = accumulated(accumulated(weights, terms[:cut], distribution), terms[cut:], distribution)
        assert np.array_equal(bits(halves), bits(accumulated(weights, terms, distribution)))

    @pytest.mark.parametrize("scale", [2.0**-14, 2.0**-10, -(2.0**-9), 0.3 * 2**-7])
    def test_bfloat16_rounding_is_unbiased(self, scale: float) -> None:
        """Two-sided z-test at alpha 1e-6 a scale: |score| < 4.9. The seeds are fixed, so the outcome is too."""
        count, start = 200_000, 1.0
        weights = narrow(np.full(count, start, np.float32), np.empty(0, np.uint16))
        steps = scale * noise.reference(17, NAME, 0, count, "rademacher").astype(np.float64)
        gap = np.where(steps > 0, 2.0**-7, 2.0**-8)
        chance = steps / gap - np.floor(steps / gap)
        change = widen(accumulated(weights, [(17, scale)], "rademacher")).astype(np.float64) - start
        assert np.isin(change - gap * np.floor(steps / gap), (0, 2.0**-7, 2.0**-8)).all()
        deviation = math.sqrt(float((gap**2 * chance * (1 - chance)).sum()))
        assert abs(float((change - steps).sum())) <= 4.9 * deviation

    def test_bfloat16_to_nearest_would_lose_small_updates(self) -> None:
        """The control of the test above: rounding to nearest drops updates under half a step."""
        weights = narrow(np.full(20_000, 1.0, np.float32), np.empty(0, np.uint16))
        (nearest,) = perturbed(weights, (2.0**-11,), 17, 0, "rademacher")
        assert np.array_equal(nearest, weights)
        assert not np.array_equal(accumulated(weights, [(17, 2.0**-11)], "rademacher"), weights)

    @each_distribution
    def test_bfloat16_rounding_is_reproducible(self, distribution: Distribution) -> None:
        weights = random_weights(10_000, "bfloat16")
        first = accumulated(weights, [(5, 1e-4)], distribution)
        assert np.array_equal(first, accumulated(weights, [(5, 1e-4)], distribution))
        assert not np.array_equal(first, accumulated(weights, [(6, 1e-4)], distribution))

    def test_bfloat16_keeps_infinities_and_nan(self) -> None:
        weights = np.array([0x7F80, 0xFF80, 0x7FC0], np.uint16)
        assert accumulated(weights, [(5, 1.0)], "binomial").tolist() == weights.tolist()
        assert perturbed(weights, (1.0,), 5, 0, "binomial")[0].tolist() == weights.tolist()
