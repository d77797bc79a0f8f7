"""The packed layout is the trie of the requests' inputs, each row on its request's path; chunks lose nothing."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpass.core import Request
from twinpass.engine.embedded.scoring.packing import Packed, Reads, Rows, groups, mark, pack, unmark

tokens = st.integers(0, 2)
requests = st.lists(
    st.builds(
        lambda prompt, completion: Request(tuple(prompt), tuple(completion)),
        st.lists(tokens, min_size=1, max_size=8),
        st.lists(tokens, min_size=1, max_size=4),
    ),
    max_size=12,
)
some_requests = requests.filter(bool)


def packed_of(batch: list[Request]) -> tuple[Packed, Reads]:
    packed = pack(request.inputs for request in batch)
    return packed, Reads.of(batch, [packed.path_of[request.inputs] for request in batch])


def path(packed: Packed, row: int) -> Rows:
    """The rows that ``row`` may attend to, itself last."""
    segment = next(segment for segment in packed.segments if segment.start <= row < segment.stop)
    return segment.path[: len(segment.path) - (segment.stop - 1 - row)]


def prefixes(batch: list[Request]) -> set[tuple[int, ...]]:
    return {request.inputs[:n] for request in batch for n in range(1, len(request.inputs) + 1)}


@given(some_requests)
def test_paths_spell_the_inputs(batch: list[Request]) -> None:
    packed, wanted = packed_of(batch)
    for request, reads, targets in zip(batch, wanted.rows, wanted.targets, strict=True):
        rows = path(packed, int(reads[-1]))
        assert tuple(packed.tokens[rows]) == request.inputs
        assert packed.positions[rows].tolist() == list(range(len(request.inputs)))
        assert reads.tolist() == rows[len(request.prompt) - 1 :].tolist()
        assert tuple(targets) == request.completion


@given(some_requests)
def test_one_row_for_every_distinct_prefix(batch: list[Request]) -> None:
    packed, _ = packed_of(batch)
    spelled = {tuple(packed.tokens[path(packed, row)].tolist()) for row in range(packed.rows)}
    assert spelled == prefixes(batch)
    assert packed.rows == len(packed.tokens) == len(packed.positions) == len(spelled)


@given(some_requests)
def test_segments_tile_the_rows_parents_first(batch: list[Request]) -> None:
    packed, _ = packed_of(batch)
    assert packed.segments[0].start == 0
    assert packed.segments[-1].stop == packed.rows
    assert all(left.stop == right.start < right.stop for left, right in pairwise(packed.segments))
    for segment in packed.segments:
        own, ancestors = np.arange(segment.start, segment.stop), segment.path[: segment.start - segment.stop]
        assert segment.path.tolist() == [*ancestors, *own]
        assert (np.diff(segment.path) > 0).all()
        assert packed.positions[segment.path].tolist() == list(range(len(segment.path)))


@given(some_requests)
def test_order_does_not_change_the_rows(batch: list[Request]) -> None:
    (packed, reads), (backwards, reversed_reads) = packed_of(batch), packed_of(batch[::-1])
    assert packed.tokens.tolist() == backwards.tokens.tolist()
    assert [rows.tolist() for rows in reads.rows] == [rows.tolist() for rows in reversed_reads.rows[::-1]]


@given(requests, st.integers(1, 40))
def test_groups_cover_everything_in_order_within_the_budget(batch: list[Request], budget: int) -> None:
    inputs = [request.inputs for request in batch]
    parts = list(groups(inputs, budget))
    assert [sequence for part in parts for sequence in inputs[part]] == inputs
    for part in parts:
        assert len(inputs[part]) == 1 or 0 < pack(inputs[part]).rows <= budget


@given(some_requests)
def test_a_large_budget_takes_everything_at_once(batch: list[Request]) -> None:
    inputs = [request.inputs for request in batch]
    assert list(groups(inputs, sum(len(sequence) for sequence in inputs))) == [slice(0, len(batch))]


def test_groups_count_shared_prefixes_once() -> None:
    batch = [(*range(100), option) for option in range(5)]
    assert list(groups(batch, 102)) == [slice(0, 2), slice(2, 4), slice(4, 5)]


@given(st.lists(st.integers(0, 9), max_size=9), st.integers(0, 9))
def test_marks_tell_the_activation_point_and_come_off(sequence: list[int], active_from: int) -> None:
    marked = mark(tuple(sequence), active_from)
    assert [token < 0 for token in marked] == [i < active_from for i in range(len(sequence))]
    assert unmark(np.array(marked, np.int64)).tolist() == sequence


def test_layout_of_an_example() -> None:
    packed, reads = packed_of([Request((0, 1, 2), (3, 9)), Request((0, 1, 2), (4, 5, 9)), Request((0, 1), (6, 9))])
    assert packed.tokens.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert packed.positions.tolist() == [0, 1, 2, 3, 3, 4, 2]
    assert [segment.path.tolist() for segment in packed.segments] == [
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 2, 4, 5],
        [0, 1, 6],
    ]
    assert [rows.tolist() for rows in reads.rows] == [[2, 3], [2, 4, 5], [1, 6]]


@pytest.mark.parametrize("depth", [3, 2000])
def test_every_prefix_of_a_long_text(depth: int) -> None:
    batch = [Request((7,) * n, (7,)) for n in range(1, depth)]
    packed, reads = packed_of(batch)
    assert packed.rows == depth - 1
    assert [rows.tolist() for rows in reads.rows] == [[row] for row in range(depth - 1)]


def test_nothing() -> None:
    assert pack([]).rows == 0
    assert list(groups([], 5)) == []
