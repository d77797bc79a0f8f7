"""Whatever rows attend together, each looks at its own path in its own lane, and at nothing else; and together costs no more than apart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from twinpass.engine.embedded.scoring.indices import NOWHERE, slots_of
from twinpass.engine.embedded.scoring.packing import Packed, Rows, pack
from twinpass.engine.embedded.scoring.pieces import GATHER, Piece, Trie, pieces_of

sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7).map(tuple), min_size=1, max_size=14)


def path(packed: Packed, row: int) -> Rows:
    segment = next(segment for segment in packed.segments if segment.start <= row < segment.stop)
    return segment.path[: len(segment.path) - (segment.stop - 1 - row)]


def seen_by(pieces: list[Piece]) -> dict[int, list[int]]:
    """The keys that each query of a pass may look at."""
    found: dict[int, list[int]] = {}
    for piece in pieces:
        hidden = piece.key_positions > piece.positions[:, None]
        hidden |= (piece.places[:, None] < piece.first) | (piece.places[:, None] >= piece.behind)
        for query, row in zip(piece.queries.tolist(), ~hidden, strict=True):
            assert query not in found, "a row is the query of one piece"
            found[query] = piece.keys[row].tolist()
    return found


@given(sequences, st.integers(1, 3), st.integers(0, 6), st.integers(1, 30), st.booleans(), st.data())
def test_every_row_looks_at_its_own_path(
    texts: list[tuple[int, ...]], lanes: int, cached: int, size: int, shared: bool, data: st.DataObject
) -> None:
    packed = pack(texts)
    fresh = packed.positions >= cached
    slots = np.full((lanes, packed.rows), NOWHERE)
    for lane in range(lanes):
        slots[lane, ~fresh] = np.flatnonzero(~fresh) + (0 if shared else 1000 * lane)
    rows = np.flatnonzero(fresh)
    if not len(rows):
        return
    start = data.draw(st.integers(0, len(rows) - 1))
    chunk = rows[start : start + size]
    for lane in range(lanes):  # what came before lies in the pool
        slots[lane, rows[:start]] = rows[:start] + 10_000 * (lane + 1)
    found = seen_by(list(pieces_of(packed, fresh, slots, chunk)))
    assert sorted(found) == list(range(lanes * len(chunk)))
    for lane in range(lanes):
        for place, row in enumerate(chunk.tolist()):
            expected = [
                lane * len(chunk) + int(np.searchsorted(chunk, other))
                if other in chunk
                else -1 - int(slots[lane, other])
                for other in path(packed, row)
            ]
            assert found[lane * len(chunk) + place] == expected
            assert all(key >= 0 or slots_of(np.array(key)) in slots[lane] for key in expected)


def cost(first: int, last: int, packed: Packed, own: NDArray[np.int64]) -> int:
    start, stop = packed.segments[first].start, packed.segments[last - 1].stop
    above = len(packed.segments[first].path) - (packed.segments[first].stop - start)
    queries = int(own[first:last].sum())
    return (queries + GATHER) * (above + stop - start) if queries else 0


@given(sequences, st.integers(0, 5))
def test_together_costs_no_more_than_apart(texts: list[tuple[int, ...]], cached: int) -> None:
    packed = pack(texts)
    fresh = packed.positions >= cached
    own = np.array([int(fresh[segment.start : segment.stop].sum()) for segment in packed.segments])
    chosen = list(Trie(packed.segments).together(own.tolist(), [True] * len(own)))
    covered = [row for each in chosen for row in range(each.start, each.stop) if fresh[row]]
    assert sorted(covered) == np.flatnonzero(fresh).tolist()
    together = sum(cost(each.first, each.last, packed, own) for each in chosen)
    assert together <= sum(cost(index, index + 1, packed, own) for index in range(len(own)))


@pytest.mark.parametrize(("prompt", "joined"), [(200, True), (0, False)])
def test_branches_behind_a_long_prompt_are_one_piece(prompt: int, joined: bool) -> None:
    """Fifty answers of two tokens bring a prompt's keys along once; without a prompt there is nothing to bring."""
    head = tuple(range(prompt))
    packed = pack([(*head, 1000 + first, 2000 + second) for first in range(10) for second in range(5)])
    fresh = packed.positions >= prompt
    pieces = list(pieces_of(packed, fresh, np.where(fresh, NOWHERE, 7)[None], np.flatnonzero(fresh)))
    keys = sum(piece.shape[1] for piece in pieces)
    assert (len(pieces) == 1) == joined
    assert keys < 3 * prompt if joined else keys <= 60 * 2


def test_branches_of_which_a_part_is_computed_later_stay_apart() -> None:
    packed = pack([(1, 2, 3), (1, 2, 4), (1, 2, 5)])
    whole = list(Trie(packed.segments).together([2, 1, 1, 1], [True] * 4))
    assert [(each.first, each.last) for each in whole] == [(0, 4)]
    parted = list(Trie(packed.segments).together([2, 1, 1, 0], [True, True, True, False]))
    assert sorted((each.first, each.last) for each in parted) == [(0, 1), (1, 3)]
