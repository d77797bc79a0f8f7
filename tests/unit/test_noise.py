"""The reference's bits are those of its definition, and the kernels draw them, whatever the slice and the number of threads."""

import hashlib
import math
import os
import subprocess
import sys
from itertools import pairwise
from random import Random
from textwrap import dedent

import numeric
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numeric import bits

from twinpass.perturb import kernels, noise
from twinpass.perturb.noise import DISTRIBUTIONS, F32, Distribution

NAME = "model.layers.0.self_attn.q_proj.weight"
SEEDS = (0, 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**63 + 12345, 2**64 - 1)
SPANS = (
    (0, 0), (0, 1), (0, 128), (0, 5000), (1, 1), (1, 3), (3, 5), (127, 2), (128, 128), (129, 4095),
    (4095, 2), (4096, 4097), (12345, 10001), (2**31 - 5, 300), (2**32 - 129, 400), (2**40 + 77, 4300),
)  # fmt: skip
seeds = st.integers(0, 2**64 - 1)
names = st.text(max_size=40).filter(lambda text: text.isprintable())
distributions = st.sampled_from(DISTRIBUTIONS)
property_test = settings(deadline=None, max_examples=60)
each_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)
one_thread, threads = numeric.one_thread, numeric.threads


def filled(seed: int, name: str, start: int, stop: int, distribution: Distribution) -> F32:
    out = np.full(stop - start, np.nan, np.float32)
    kernels.fill(out, seed, noise.name_key(name), start, distribution)
    return out


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
