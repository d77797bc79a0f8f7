"""Low-rank terms in registers are products with each lane's factors, and a row has the same bits beside any others."""

import numpy as np
import pytest

from twinpass.perturb.gemm import low_rank
from twinpass.perturb.gemm.registers import WIDTH
from twinpass.perturb.noise import F32

pytestmark = pytest.mark.skipif(WIDTH == 0, reason="the processor has no registers that are known")


def _parts(lanes: int, rows: int, inputs: int, outputs: int, rank: int) -> tuple[F32, F32, F32, F32]:
    random = np.random.default_rng(rows)

    def normal(*shape: int) -> F32:
        return random.normal(size=shape).astype(np.float32)

    x, a, y = normal(lanes, rows, inputs), normal(lanes, rank, inputs), normal(lanes, rows, outputs)
    arena = normal(lanes, outputs * rank + 5)  # a lane's factors are as far apart as the arena is long
    return x, a, arena[:, 3:-2].reshape(lanes, outputs, rank), y


@pytest.mark.parametrize("shape", [(1, 1, 16, 16, 8), (3, 5, 48, 32, 16), (2, 67, 64, 96, 8), (4, 8, 576, 192, 64)])
def test_terms_are_those_of_each_lanes_factors(shape: tuple[int, int, int, int, int]) -> None:
    x, a, b, y = _parts(*shape)
    wide = [part.astype(np.float64) for part in (x, a, b)]
    expected = y + 0.3 * (wide[0] @ wide[1].transpose(0, 2, 1) @ wide[2].transpose(0, 2, 1))
    low_rank.add(x, a, b, y, 0.3)
    assert np.abs(y - expected).max() < 2e-6 * np.abs(expected).max()


def test_a_row_has_the_same_bits_beside_any_others() -> None:
    x, a, b, y = _parts(2, 41, 64, 32, 8)
    whole = y.copy()
    low_rank.add(x, a, b, whole, 2.0)
    for rows in (slice(40, 41), slice(3, 6), slice(0, 33)):
        part = y[:, rows].copy()
        low_rank.add(np.ascontiguousarray(x[:, rows]), a, b, part, 2.0)
        assert np.array_equal(part, whole[:, rows])


def test_what_does_not_fill_registers_is_left_to_others() -> None:
    assert low_rank.suits(64, 32, 8)
    assert not any(low_rank.suits(*shape) for shape in [(60, 32, 8), (64, 30, 8), (64, 32, 4)])
