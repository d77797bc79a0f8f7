"""Minibatches are pure functions of seed and draw."""

from hypothesis import given, settings
from hypothesis import strategies as st

from twinpass.train.batches import batch

property_test = settings(deadline=None, max_examples=60)


def drawn(count: int, size: int, seed: int, draws: int) -> list[int]:
    return [i for draw in range(draws) for i in batch(range(count), size, seed, draw)]


@property_test
@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 2**32))
def test_every_epoch_is_a_permutation(count: int, size: int, seed: int) -> None:
    rows = drawn(count, size, seed, 3 * count)
    assert len(rows) == 3 * count * size
    for start in range(0, len(rows), count):
        assert sorted(rows[start : start + count]) == list(range(count))


def test_a_batch_is_a_pure_function_of_seed_and_draw() -> None:
    in_order = [batch(range(7), 3, 5, draw) for draw in range(20)]
    assert [batch(range(7), 3, 5, draw) for draw in reversed(range(20))] == in_order[::-1]
    assert drawn(7, 3, 5, 14) == drawn(7, 6, 5, 7) == drawn(7, 42, 5, 1)


def test_epochs_and_seeds_shuffle_differently() -> None:
    first, second = batch(range(50), 50, 0, 0), batch(range(50), 50, 0, 1)
    assert len({tuple(first), tuple(second), tuple(batch(range(50), 50, 1, 0)), tuple(range(50))}) == 4


def test_a_batch_larger_than_the_data_repeats_it() -> None:
    rows = batch("abc", 8, 0, 0)
    assert len(rows) == 8
    assert sorted(rows[:3]) == sorted(rows[3:6]) == ["a", "b", "c"]
    assert set(rows[6:]) < set("abc")
