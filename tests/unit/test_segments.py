"""Low-rank terms of unequal segments are products with the factors in each one's slot; what is not in use is neither read nor written."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from twinpass.perturb.gemm import segments
from twinpass.perturb.gemm.registers import WIDTH
from twinpass.perturb.noise import F32

pytestmark = pytest.mark.skipif(WIDTH == 0, reason="the processor has no registers that are known")

ROOM = 16
RANKS = (8, 0, 1, 16, 3)
"""By slot; slot 1 is the base model's."""
SLICES = ((0, 32, 48, 64), (0, 96))
INPUTS = 48


def _pool(offsets: tuple[int, ...]) -> tuple[F32, F32, F32]:
    """Factors and scales by slot; what is not in use is not a number."""
    random = np.random.default_rng(len(offsets))
    slices = len(offsets) - 1
    a = np.full((len(RANKS), slices * ROOM, INPUTS), np.nan, np.float32)
    b = np.full((len(RANKS), offsets[-1], ROOM), np.nan, np.float32)
    for slot, rank in enumerate(RANKS):
        a[slot, : slices * rank] = random.normal(size=(slices * rank, INPUTS))
        b[slot, :, :rank] = random.normal(size=(offsets[-1], rank))
    return a, b, random.uniform(0.5, 2, len(RANKS)).astype(np.float32)


def _added(x: F32, y: F32, lengths: tuple[int, ...], slots: tuple[int, ...], offsets: tuple[int, ...]) -> F32:
    a, b, scales = _pool(offsets)
    parts, slices = segments.parts_of(lengths, slots, RANKS), len(offsets) - 1
    thin, added = np.zeros((len(x), slices * ROOM), np.float32), y.copy()
    segments.down(x, a, parts, scales, slices, thin)
    segments.up(thin, b, parts, np.array(offsets), added)
    return added


def _expected(
    x: F32, y: F32, lengths: tuple[int, ...], slots: tuple[int, ...], offsets: tuple[int, ...]
) -> NDArray[np.float64]:
    a, b, scales = (part.astype(np.float64) for part in _pool(offsets))
    found, first = y.astype(np.float64), 0
    for length, slot in zip(lengths, slots, strict=True):
        rows, rank = slice(first, first + length), RANKS[slot]
        for s, (begin, end) in enumerate(pairwise(offsets)):
            own = scales[slot] * x[rows] @ a[slot, s * rank : (s + 1) * rank].T
            found[rows, begin:end] += own @ b[slot, begin:end, :rank].T
        first += length
    return found


def _rows(count: int, width: int) -> F32:
    return np.random.default_rng(width).normal(size=(count, width)).astype(np.float32)


@pytest.mark.parametrize("offsets", SLICES)
@pytest.mark.parametrize(
    ("lengths", "slots"),
    [
        ((1,), (0,)),
        ((5, 3, 1, 70), (0, 1, 4, 2)),
        ((0, 7, 0, 33, 2), (3, 3, 1, 0, 4)),
        ((2, 2, 2), (4, 0, 4)),
        ((4,), (1,)),
        ((), ()),
    ],
)
def test_terms_are_those_of_each_segments_slot(
    lengths: tuple[int, ...], slots: tuple[int, ...], offsets: tuple[int, ...]
) -> None:
    x, y = _rows(sum(lengths), INPUTS), _rows(sum(lengths), offsets[-1] + WIDTH)  # outputs that no slice is of
    found, expected = (which(x, y, lengths, slots, offsets) for which in (_added, _expected))
    assert np.abs(found - expected).max(initial=0) < 2e-6 * np.abs(expected).max(initial=1)
    assert np.array_equal(found[:, offsets[-1] :], y[:, offsets[-1] :])


@pytest.mark.parametrize("offsets", SLICES)
def test_rows_have_the_same_bits_beside_any_others_and_those_without_an_adapter_keep_theirs(
    offsets: tuple[int, ...],
) -> None:
    x, y = _rows(60, INPUTS), _rows(60, offsets[-1])
    whole = _added(x, y, (9, 11, 40), (0, 1, 4), offsets)
    assert np.array_equal(whole[9:20], y[9:20])
    for rows, slot in ((slice(8, 9), 0), (slice(2, 7), 0), (slice(20, 60), 4), (slice(57, 60), 4)):
        alone = _added(x[rows], y[rows], (rows.stop - rows.start,), (slot,), offsets)
        assert np.array_equal(alone, whole[rows])


def test_parts_say_what_has_to_be_there() -> None:
    parts = segments.parts_of((3, 70, 5), (1, 2, 4), RANKS)
    assert (parts.rows, parts.slots, parts.rank) == (78, 5, 3)
    assert parts.blocks[:, :2].tolist() == [[3, 32], [35, 32], [67, 6], [73, 5]]
    nothing = segments.parts_of((3,), (1,), RANKS)
    assert (len(nothing.blocks), nothing.rows, nothing.slots, nothing.rank) == (0, 3, 0, 0)


def test_what_does_not_fill_registers_is_left_to_others() -> None:
    assert segments.suits_down(64)
    assert not segments.suits_down(60)
    assert segments.suits_up((0, 32, 64), 8)
    assert not any(segments.suits_up(*shape) for shape in [((0, 30, 64), 8), ((0, 64), 4)])
