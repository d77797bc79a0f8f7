"""Lanes of opposite signs under weights in bfloat16: the sums of rounded factors, whatever instructions make them."""

import numeric
import numpy as np
import pytest
import torch
from numeric import Array

from twinpass.perturb import kernels
from twinpass.perturb.gemm import pairs, tiles
from twinpass.perturb.gemm.tiles import Instructions, available
from twinpass.perturb.noise import DISTRIBUTIONS, Distribution

one_thread, threads = numeric.one_thread, numeric.threads

SEED, KEY = 5, 2**63 + 7

PLUS, MINUS = np.array([2, 1, 3]), np.array([0, -1, 4])
"""Two pairs, and lane 1 on its own between them."""
SCALES = np.array([1e-3, 2e-3, -0.5])

SHAPES = [(0, 5, 3), (1, 1, 1), (5, 70, 37), (16, 32, 32), (17, 96, 64), (33, 320, 33), (40, 577, 100)]
"""Rows, in, out: fewer than a tile has, whole tiles, and what is left over in each direction."""


@pytest.fixture(params=["amx", "float32"])
def instructions(request: pytest.FixtureRequest) -> Instructions:
    wanted: Instructions = request.param
    if wanted not in available():
        pytest.skip(f"this processor has no {wanted} for bfloat16")
    return wanted


def operands(rows: int, width: int, out: int) -> tuple[Array, Array]:
    generator = np.random.default_rng(1)
    x = generator.standard_normal((5, rows, width), np.float32)
    for plus, minus, scale in zip(PLUS, MINUS, SCALES, strict=True):
        if minus >= 0:
            x[minus] = x[plus] + np.float32(scale) * x[minus]
    return x, generator.standard_normal(out * width, np.float32)


def rounded(x: Array) -> Array:
    low: Array = torch.from_numpy(np.ascontiguousarray(x, np.float32)).bfloat16().double().numpy()
    return low


def multiplied(
    x: Array,
    w: Array,
    instructions: Instructions | None,
    distribution: Distribution = "binomial",
    scales: Array = SCALES,
    parts: slice = slice(None),
) -> Array:
    """Lanes of other ``parts`` are NaN."""
    y = np.full((*x.shape[:2], w.size // x.shape[2]), np.nan, np.float32)
    low = pairs.split(x, PLUS, MINUS, scales)
    own = (PLUS[parts], MINUS[parts], scales[parts])
    pairs.multiply(low[parts], w, *own, y, SEED, KEY, distribution, instructions)
    return y


def expected(x: Array, w: Array, distribution: Distribution) -> tuple[Array, Array]:
    """In float64, lanes and what their terms add up to in size."""
    z = np.empty(w.size, np.float32)
    kernels.fill(z, SEED, KEY, 0, distribution)
    weights, noise = (rounded(part).reshape(-1, x.shape[2]).T for part in (w, z))
    y = np.empty((*x.shape[:2], weights.shape[1]))
    size = np.empty_like(y)
    for plus, minus, scale in zip(PLUS, MINUS, SCALES, strict=True):
        e = float(np.float32(scale))
        if minus < 0:
            s = rounded(x[plus])
            y[plus] = s @ weights + e * (s @ noise)
            size[plus] = abs(s) @ abs(weights + e * noise)
            continue
        s = rounded(x[plus] + x[minus])
        t = rounded((x[plus] - x[minus]) * np.float32(1 / scale))
        total, half = s @ weights, t @ weights + s @ noise
        y[plus], y[minus] = (total + e * half) / 2, (total - e * half) / 2
        size[plus] = size[minus] = abs(s) @ abs(weights) + abs(e) * (abs(t) @ abs(weights) + abs(s) @ abs(noise))
    return y, size


@pytest.mark.table
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_lanes_are_sums_of_rounded_factors(
    shape: tuple[int, int, int], distribution: Distribution, instructions: Instructions, threads: int
) -> None:
    x, w = operands(*shape)
    y, size = expected(x, w, distribution)
    assert np.all(np.abs(multiplied(x, w, instructions, distribution) - y) <= size * (shape[1] + 4) * 2.0**-23)


@pytest.mark.table
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_what_lanes_differ_by_has_the_precision_of_its_own_size(
    shape: tuple[int, int, int], instructions: Instructions
) -> None:
    """Not of the lanes' size: that would leave three digits fewer of it."""
    x, w = operands(*shape)
    y, _ = expected(x, w, "binomial")
    found = multiplied(x, w, instructions)
    for plus, minus in ((2, 0), (3, 4)):
        apart, exact = found[plus].astype(np.float64) - found[minus], y[plus] - y[minus]
        lost = 2.0**-23 * np.abs(y[plus]).max()
        assert np.abs(apart - exact).max() <= 1e-4 * np.abs(exact).max() + lost


@pytest.mark.table
@pytest.mark.parametrize(("first", "last"), [(0, 1), (3, 12), (39, 40), (0, 24)])
def test_a_rows_result_does_not_depend_on_the_others(
    first: int, last: int, instructions: Instructions, threads: int
) -> None:
    x, w = operands(40, 577, 1000)
    part = np.ascontiguousarray(x[:, first:last])
    assert np.array_equal(multiplied(part, w, instructions), multiplied(x, w, instructions)[:, first:last])


@pytest.mark.parametrize("words", [1, 20_000])
def test_how_much_is_in_the_cache_changes_no_bit(
    words: int, instructions: Instructions, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w = operands(100, 577, 200)
    before = multiplied(x, w, instructions)
    monkeypatch.setattr(pairs, "PANELS", words)
    monkeypatch.setattr(pairs, "LOWS", words)
    assert np.array_equal(multiplied(x, w, instructions), before)


@pytest.mark.parametrize(
    ("panels", "limit", "threads", "expected"),
    [(18, 7, 2, 5), (48, 7, 2, 6), (6, 7, 2, 3), (1, 7, 2, 1), (18, 1, 4, 1), (64, 100, 16, 4), (0, 7, 2, 1)],
)
def test_threads_come_to_as_many_panels(panels: int, limit: int, threads: int, expected: int) -> None:
    assert pairs._group(panels, limit, threads) == expected <= limit


def test_a_run_of_parts_writes_its_own_lanes(instructions: Instructions) -> None:
    x, w = operands(17, 96, 64)
    whole, part = multiplied(x, w, instructions), multiplied(x, w, instructions, parts=slice(1, 3))
    assert np.array_equal(part[[1, 3, 4]], whole[[1, 3, 4]])
    assert np.isnan(part[[0, 2]]).all()


def test_lanes_at_no_distance_are_equal(instructions: Instructions) -> None:
    x, w = operands(17, 96, 64)
    x[0] = x[2]
    found = multiplied(x, w, instructions, scales=np.zeros(3))
    assert np.isfinite(found).all()
    assert np.array_equal(found[0], found[2])


def test_instructions_agree() -> None:
    """As far as float32 goes: they differ in the order of sums."""
    x, w = operands(40, 577, 100)
    _, size = expected(x, w, "binomial")
    first, *others = (multiplied(x, w, instructions) for instructions in available())
    assert np.array_equal(first, multiplied(x, w, None))
    for other in others:
        assert np.all(np.abs(first - other) <= size * 577 * 2.0**-22)


def test_pytorch_multiplies_as_before(instructions: Instructions) -> None:
    """Both divide AMX's registers as they need them."""
    x, w = operands(40, 577, 100)
    low = torch.randn(64, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    product, found = low @ low.T, multiplied(x, w, instructions)
    for _ in range(3):
        assert torch.equal(low @ low.T, product)
        assert np.array_equal(multiplied(x, w, instructions), found)


@pytest.mark.parametrize("shape", [(3, 5), (16, 32), (33, 70)])
def test_tiles_hold_rounded_sums_and_differences(shape: tuple[int, int], threads: int) -> None:
    rows, width = shape
    x, _ = operands(rows, width, 1)
    x[1, 0, :4] = 1 + 2**-8, 1 + 3 * 2**-8, np.inf, np.nan
    low = pairs.split(x, PLUS, MINUS, SCALES)
    values = torch.from_numpy(low.view(np.int16)).view(torch.bfloat16).double().numpy()
    lines = values.transpose(3, 0, 1, 4, 2, 5).reshape(2, len(PLUS), low.shape[1] * 16, -1)
    assert not lines[:, :, rows:].any()
    assert not lines[:, :, :, width:].any()
    s, t = lines[:, :, :rows, :width]
    for part, (plus, minus, scale) in enumerate(zip(PLUS, MINUS, SCALES, strict=True)):
        one, other = (x[plus], np.zeros_like(x[plus])) if minus < 0 else (x[plus], x[minus])
        apart = np.zeros_like(one) if minus < 0 else (one - other) * np.float32(1 / scale)
        assert np.array_equal(s[part], rounded(one + other), equal_nan=True)
        assert np.array_equal(t[part], rounded(apart))


def test_weights_that_are_no_numbers_stay_none(instructions: Instructions) -> None:
    x, w = operands(16, 32, 32)
    w[5], w[40] = np.nan, np.inf
    found = multiplied(x, w, instructions)
    assert np.isnan(found[:, :, 0]).all()
    assert not np.isfinite(found[:, :, 1]).any()
    assert np.isfinite(found[:, :, 2:]).all()


@pytest.mark.parametrize(
    ("features", "granted", "known"),
    [
        ({"amx-tile": True, "amx-bf16": True, "avx512bf16": True}, True, ["amx", "float32"]),
        ({"amx-tile": True, "amx-bf16": True, "avx512bf16": True}, False, ["float32"]),
        ({"amx-tile": True, "avx512bf16": True}, True, ["float32"]),
        ({}, True, ["float32"]),
    ],
)
def test_what_a_processor_is_known_to_have(
    features: dict[str, bool], granted: bool, known: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "_granted", lambda: granted)
    assert list(tiles._known(features)) == known
