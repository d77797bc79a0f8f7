"""The kernels draw the reference's bits, whatever the slice, the order, the split and the number of threads."""

import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from random import Random
from textwrap import dedent

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
SEEDS = (0, 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**63 + 12345, 2**64 - 1)
SPANS = (
    (0, 0), (0, 1), (0, 128), (0, 5000), (1, 1), (1, 3), (3, 5), (127, 2), (128, 128), (129, 4095),
    (4095, 2), (4096, 4097), (12345, 10001), (2**31 - 5, 300), (2**32 - 129, 400), (2**40 + 77, 4300),
)  # fmt: skip
DTYPES = ("float32", "float64", "bfloat16")

seeds = st.integers(0, 2**64 - 1)
names = st.text(max_size=40).filter(lambda text: text.isprintable())
distributions = st.sampled_from(DISTRIBUTIONS)
property_test = settings(deadline=None, max_examples=60)

each_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


one_thread, threads = numeric.one_thread, numeric.threads


def filled(seed: int, name: str, start: int, stop: int, distribution: Distribution) -> F32:
    out = np.full(stop - start, np.nan, np.float32)
    kernels.fill(out, seed, noise.name_key(name), start, distribution)
    return out


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


class TestPhilox:
    # The vectors are Random123's kat_vectors for philox4x32-10: counter words 0-3, key words 0-1, output.
    @pytest.mark.parametrize(
        ("counter", "key", "expected"),
        [
            ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
            ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
            ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
        ],
    )
    def test_known_answers(self, counter: str, key: str, expected: str) -> None:
        c0, c1, c2, c3 = (int(word, 16) for word in counter.split())
        k0, k1 = (int(word, 16) for word in key.split())
        words = noise.philox(k0 | k1 << 32, c2 | c3 << 32, np.array([c0 | c1 << 32], np.uint64))
        assert " ".join(f"{int(word[0]):08x}" for word in words) == expected

    @pytest.mark.parametrize(
        ("seed", "expected"),
        [(0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"), (0x299F31D0A4093822, None), (2**64 - 1, None)],
    )
    def test_kernel_signs_are_the_words_of_one_block(self, seed: int, expected: str | None) -> None:
        signs = np.empty(128, np.float32)
        kernels.fill(signs, seed, 0, 0, "rademacher")
        words = np.packbits(signs > 0, bitorder="little").view("<u4")
        reference = np.concatenate(noise.philox(seed, 0, np.zeros(1, np.uint64)))
        assert words.tolist() == reference.tolist()
        if expected is not None:
            assert " ".join(f"{word:08x}" for word in words) == expected


class TestSeeds:
    def test_distinct_paths_give_distinct_seeds(self) -> None:
        paths: set[tuple[int | str, ...]] = {
            (), ("",), ("", ""), (0,), (1,), ("1",), (1, 1), (11,), ("11",), (1, "1"), ("1", 1), ("1", "1"),
            (7, "probe", 3, 0), (7, "probe", 0, 3), (7, "data", 3, 0), (-1,), (2**70,),
        }  # fmt: skip
        paths |= {(7, "probe", step, k) for step in range(1000) for k in range(4)}
        assert len({noise.derive_seed(*path) for path in paths}) == len(paths)

    def test_a_separator_inside_a_part_does_not_merge_paths(self) -> None:
        assert noise.derive_seed("a", "b") != noise.derive_seed("a/str:b")

    @property_test
    @given(st.lists(st.integers() | st.text(), max_size=5))
    def test_is_a_63_bit_pure_function(self, path: list[int | str]) -> None:
        seed = noise.derive_seed(*path)
        assert 0 <= seed < 2**63
        assert seed == noise.derive_seed(*path)

    @property_test
    @given(st.integers())
    def test_an_integer_is_not_its_text(self, number: int) -> None:
        assert noise.derive_seed(number) != noise.derive_seed(str(number))

    def test_name_keys_differ_by_name_and_purpose(self) -> None:
        layers = [f"model.layers.{i}.{part}.weight" for i in range(200) for part in ("q_proj", "k_proj")]
        keys = {noise.name_key(name, purpose) for name in layers for purpose in ("z", "round")}
        assert len(keys) == 2 * len(layers)
        assert all(0 <= key < 2**64 for key in keys)

    @pytest.mark.parametrize(
        ("distribution", "digest"),
        [("gaussian", "79f8f4573bdbd144"), ("binomial", "b554bcbe0d0229f5"), ("rademacher", "a70461009f0346ad")],
    )
    def test_the_noise_is_frozen_under_its_version(self, distribution: Distribution, digest: str) -> None:
        """A journal written years ago replays only if these bits never change without a new ``ALGORITHM``."""
        assert noise.ALGORITHM == "philox4x32-10/2"
        z = noise.reference(2**63 + 1, NAME, 5, 1005, distribution)
        assert hashlib.blake2b(z.astype("<f4").tobytes(), digest_size=8).hexdigest() == digest


class TestFill:
    @each_distribution
    @pytest.mark.parametrize("seed", SEEDS)
    def test_returns_the_bits_of_the_reference(self, seed: int, distribution: Distribution) -> None:
        for start, count in SPANS:
            z = filled(seed, NAME, start, start + count, distribution)
            expected = noise.reference(seed, NAME, start, start + count, distribution)
            assert expected.dtype == np.float32
            assert np.array_equal(bits(z), bits(expected)), (start, count)

    @property_test
    @given(seeds, names, st.integers(0, 2**48), st.integers(0, 9000), distributions)
    def test_returns_the_bits_of_the_reference_anywhere(
        self, seed: int, name: str, start: int, count: int, distribution: Distribution
    ) -> None:
        z = filled(seed, name, start, start + count, distribution)
        assert np.array_equal(bits(z), bits(noise.reference(seed, name, start, start + count, distribution)))

    @property_test
    @given(seeds, st.tuples(st.integers(0, 20_000), st.integers(0, 20_000)), distributions)
    def test_a_slice_is_the_slice_of_the_whole(
        self, seed: int, ends: tuple[int, int], distribution: Distribution
    ) -> None:
        start, stop = sorted(ends)
        whole = filled(seed, NAME, 0, 20_000, distribution)
        assert np.array_equal(bits(filled(seed, NAME, start, stop, distribution)), bits(whole[start:stop]))

    @property_test
    @given(st.lists(st.integers(0, 12_000), min_size=1, max_size=12), st.randoms(), distributions)
    def test_tiles_in_any_order_make_the_whole(
        self, cuts: list[int], random: Random, distribution: Distribution
    ) -> None:
        tiles = list(pairwise([0, *sorted(cuts), 12_000]))
        random.shuffle(tiles)
        z = np.full(12_000, np.nan, np.float32)
        for start, stop in tiles:
            kernels.fill(z[start:stop], 9, noise.name_key(NAME), start, distribution)
        assert np.array_equal(bits(z), bits(filled(9, NAME, 0, 12_000, distribution)))

    @each_distribution
    def test_any_number_of_threads(self, threads: int, distribution: Distribution) -> None:
        z = filled(3, NAME, 1001, 60_000, distribution)
        assert np.array_equal(bits(z), bits(noise.reference(3, NAME, 1001, 60_000, distribution)))


class TestThreads:
    @pytest.mark.full
    @pytest.mark.parametrize(("of_torch", "of_numba"), [(1, 2), (2, 1)])
    def test_a_kernel_leaves_the_number_of_torchs_threads_alone(self, of_torch: int, of_numba: int) -> None:
        """In a process of its own, because Numba's threads are started once."""
        code = f"""
            import numpy, torch
            torch.set_num_threads({of_torch})
            from twinpass.perturb import kernels
            assert torch.get_num_threads() == {of_torch}, "after the import"
            kernels.fill(numpy.empty(10**6, numpy.float32), 1, 2, 0, "binomial")
            assert torch.get_num_threads() == {of_torch}, "after a kernel"
        """
        environment = os.environ | {"NUMBA_NUM_THREADS": str(of_numba)}
        subprocess.run([sys.executable, "-c", dedent(code)], env=environment, check=True)


class TestValues:
    @property_test
    @given(seeds, names, st.integers(0, 2**40))
    def test_signs(self, seed: int, name: str, start: int) -> None:
        z = filled(seed, name, start, start + 500, "rademacher")
        assert set(z.tolist()) == {-1.0, 1.0}

    @property_test
    @given(seeds, names, st.integers(0, 2**40))
    def test_binomials_are_halves(self, seed: int, name: str, start: int) -> None:
        halves = 2 * filled(seed, name, start, start + 500, "binomial")
        assert np.array_equal(halves, np.rint(halves))
        assert np.abs(halves).max() <= 8

    def test_binomial_counts_the_set_bits_of_half_a_word(self) -> None:
        words = noise.philox(5, noise.name_key(NAME), np.arange(50, dtype=np.uint64))
        halves = [
            part for block in zip(*words, strict=True) for word in block for part in divmod(int(word), 2**16)[::-1]
        ]
        expected = [(half.bit_count() - 8) / 2 for half in halves]
        assert noise.reference(5, NAME, 0, 400, "binomial").tolist() == expected

    def test_gaussians_are_box_muller_pairs(self) -> None:
        words = np.stack(noise.philox(5, noise.name_key(NAME), np.arange(20_000, dtype=np.uint64)), axis=-1)
        radius, angle = (words.reshape(-1, 2)[:, i].astype(np.float64) for i in (0, 1))
        r = np.sqrt(-2 * np.log((radius + 0.5) / 2**32))
        turn = 2 * np.pi * angle / 2**32 - np.pi / 4
        expected = np.stack([r * np.cos(turn), r * np.sin(turn)], axis=-1).reshape(-1)
        # Float32's rounding of the result (which grows with r) and of a uniform near 1 (which shrinks with r).
        tolerance = np.repeat(2.0**-22 * (r + 1 / r), 2)
        assert (np.abs(noise.reference(5, NAME, 0, 80_000, "gaussian") - expected) <= tolerance).all()

    @pytest.mark.parametrize("radius", [0, 1, 2**31, 2**32 - 2**8, 2**32 - 1])
    @pytest.mark.parametrize("angle", [0, 2**29, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 2**32 - 1])
    def test_the_most_extreme_words_give_finite_gaussians(self, radius: int, angle: int) -> None:
        pair = noise._box_muller(np.array([radius], np.uint32), np.array([angle], np.uint32))
        a, b = (float(value[0]) for value in pair)
        assert math.hypot(a, b) == pytest.approx(math.sqrt(-2 * math.log((radius + 0.5) / 2**32)), abs=4e-4)

    @property_test
    @given(seeds, names, st.tuples(st.integers(0, 9000), st.integers(0, 9000)))
    def test_uniforms(self, seed: int, name: str, ends: tuple[int, int]) -> None:
        start, stop = sorted(ends)
        u = noise.uniform_reference(seed, name, start, stop)
        grid = u.astype(np.float64) * 2**24
        assert u.dtype == np.float32
        assert np.array_equal(grid, np.floor(grid))
        assert ((u >= 0) & (u < 1)).all()
        assert np.array_equal(u, noise.uniform_reference(seed, name, 0, 9000)[start:stop])


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
