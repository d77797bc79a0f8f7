"""Which rows attend together: branches of a trie as one piece, where that is less work than a piece each.

Branches look at the same prompt. As pieces of their own each brings that prompt's keys and values along once more: 50 options of some
tokens do so thirty times a prompt, and a gradient keeps them all. As one piece they bring them once, and a mask keeps neighbours apart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinpass.engine.embedded.scoring.indices import in_pool
from twinpass.engine.embedded.scoring.packing import Packed, Rows, Segment

GATHER = 16
"""What a key and its value cost a piece that they are brought to, in products of a key with a query."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Queries [n] that look at the same keys [m]: each at those whose position is not beyond its own and whose span it stands in.

    Queries are rows of the pass, all lanes counted through; so are keys, and a negative one is a slot (:func:`in_pool`). ``places`` [n]
    number queries so that those that may see a key are neighbours; ``first`` and ``behind`` [m] are the first place that sees each key,
    and the one behind the last.
    """

    queries: Rows
    keys: Rows
    positions: Rows
    key_positions: Rows
    places: Rows
    first: Rows
    behind: Rows

    @property
    def shape(self) -> tuple[int, int]:
        """How many queries and keys there are."""
        return len(self.queries), len(self.keys)


def pieces_of(packed: Packed, fresh: NDArray[np.bool_], slots: Rows, rows: Rows) -> Iterator[Piece]:
    """What the rows of a pass look at: for branches that attend together one piece a lane, or one for all lanes if they share most.

    Args:
        fresh: which rows are computed at all, [R].
        slots: where the keys and values of rows that are not in the pass are, [lanes, R].
        rows: those that the pass computes, in order.
    """
    here = np.zeros(packed.rows, bool)
    here[rows] = True
    bounds = np.array([(segment.start, segment.stop) for segment in packed.segments]).T
    queries, computed = (np.add.reduceat(own.astype(np.int64), bounds[0]) for own in (here, fresh))
    trie = Trie(packed.segments)
    for branches in trie.together(queries.tolist(), (queries == computed).tolist()):
        yield from _pieces(packed, trie, branches, here, slots, rows)


def _pieces(
    packed: Packed, trie: "Trie", branches: "Branches", here: NDArray[np.bool_], slots: Rows, rows: Rows
) -> Iterator[Piece]:
    lanes, every, positions = len(slots), packed.rows, packed.positions
    above, joined, stop = len(branches.above), branches.last > branches.first + 1, branches.stop
    own = branches.start + np.flatnonzero(here[branches.start : stop])
    path = np.concatenate([branches.above, np.arange(branches.start, stop if joined else own[-1] + 1)])
    first, behind = np.zeros(len(path), np.int64), np.full(len(path), every)
    if joined:
        first[above:], behind[above:] = trie.spans(branches)
    local, queries = np.searchsorted(rows, path), np.searchsorted(rows, own)
    keys = [np.where(here[path], lane * len(rows) + local, in_pool(slots[lane, path])) for lane in range(lanes)]
    shared = next((i for i in range(len(path)) if any(k[i] != keys[0][i] for k in keys)), len(path))
    shared = min(shared, above) if joined else shared
    if lanes == 1 or shared < (lanes - 1) * (len(path) - shared):
        for lane in range(lanes):
            yield Piece(lane * len(rows) + queries, keys[lane], positions[own], positions[path], own, first, behind)
        return
    each, rest = np.arange(lanes)[:, None], slice(shared, None)

    def in_all(before: Rows, by_lane: Rows) -> Rows:
        return np.concatenate([before, by_lane.reshape(-1)])

    yield Piece(
        (each * len(rows) + queries).reshape(-1),
        in_all(keys[0][:shared], np.stack([lane[rest] for lane in keys])),
        np.tile(positions[own], lanes),
        in_all(positions[path[:shared]], np.tile(positions[path[rest]], lanes)),
        (each * every + own).reshape(-1),
        in_all(np.zeros(shared, np.int64), each * every + first[rest]),
        in_all(np.full(shared, lanes * every), each * every + behind[rest]),
    )


@dataclass(frozen=True, slots=True)
class Branches:
    """Segments [first, last) of a trie that attend as one, their rows [start, stop), and those ``above``, at which all of them look."""

    first: int
    last: int
    start: int
    stop: int
    above: Rows


class Trie:
    """The segments of a packed batch, depth first, and where each one's branches end."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = segments
        self.behind = [len(segments)] * len(segments)
        """The segment behind each one's branches."""
        open_: list[int] = []
        for index, segment in enumerate(segments):
            depth = len(segment.path) - (segment.stop - segment.start)
            while open_ and len(segments[open_[-1]].path) > depth:
                self.behind[open_.pop()] = index
            open_.append(index)

    def rows(self, first: int, last: int) -> int:
        """How many rows these segments have."""
        return self.segments[last - 1].stop - self.segments[first].start

    def above(self, index: int) -> Rows:
        """The rows of a segment's ancestors."""
        segment = self.segments[index]
        return segment.path[: len(segment.path) - (segment.stop - segment.start)]

    def spans(self, branches: Branches) -> tuple[Rows, Rows]:
        """For each row of some branches the first row that may look at it, and the one behind the last."""
        first, behind = [], []
        for index in range(branches.first, branches.last):
            segment = self.segments[index]
            end = self.segments[self.behind[index] - 1].stop
            first += [segment.start] * (segment.stop - segment.start)
            behind += [end] * (segment.stop - segment.start)
        return np.array(first, np.int64), np.array(behind, np.int64)

    def together(self, queries: Sequence[int], whole: Sequence[bool]) -> Iterator[Branches]:
        """Cut the segments with queries so that attending costs least, one branch after another.

        Args:
            queries: how many rows of each segment the pass computes.
            whole: whether it computes all that is computed of a segment; branches of which it does not stay apart.
        """
        plans = _Plans(self, queries, whole)
        todo = [plans.root]
        while todo:
            for run in todo.pop():
                if not run.cost:
                    continue
                if run.joined:
                    yield self._branches(run.first, run.last)
                    continue
                if queries[run.first]:
                    yield self._branches(run.first, run.first + 1)
                todo.append(plans.below[run.first])

    def _branches(self, first: int, last: int) -> Branches:
        start = self.segments[first].start
        return Branches(first, last, start, start + self.rows(first, last), self.above(first))


@dataclass(frozen=True, slots=True)
class _Run:
    """Branches [first, last), as one piece (``joined``) or a segment and what is below it, and the cost."""

    first: int
    last: int
    joined: bool
    cost: int


class _Plans:
    """The cheapest plan for what is below each segment, and for all, from the leaves up."""

    def __init__(self, trie: Trie, queries: Sequence[int], whole: Sequence[bool]) -> None:
        self._trie = trie
        self._queries = np.concatenate([[0], np.cumsum(queries)]).tolist()
        self._parted = np.concatenate([[0], np.cumsum(np.logical_not(whole))]).tolist()
        self.below: list[list[_Run]] = [[] for _ in queries]
        best: dict[int, _Run] = {}
        for index in reversed(range(len(queries))):
            depth, end = len(trie.segments[index].path), trie.behind[index]
            self.below[index] = self._runs(best, index + 1, end, depth)
            apart = _cost(queries[index], depth) + sum(run.cost for run in self.below[index])
            joined = self._joined(index, end, len(trie.above(index)))
            alone = end == index + 1 or joined is None or joined.cost > apart
            best[index] = _Run(index, end, False, apart) if alone or joined is None else joined
        self.root = self._runs(best, 0, len(queries), 0)

    def _runs(self, best: dict[int, _Run], index: int, end: int, depth: int) -> list[_Run]:
        """Neighbours below ``depth`` rows, joined one by one for as long as that pays: each more has more to keep apart from."""
        runs: list[_Run] = []
        while index < end:
            own = best[index]
            more = self._joined(runs[-1].first, own.last, depth) if runs else None
            if more is not None and more.cost <= runs[-1].cost + own.cost:
                runs[-1] = more
            else:
                runs.append(own)
            index = self._trie.behind[index]
        return runs

    def _joined(self, first: int, last: int, depth: int) -> _Run | None:
        if self._parted[last] > self._parted[first]:
            return None
        queries = self._queries[last] - self._queries[first]
        return _Run(first, last, True, _cost(queries, depth + self._trie.rows(first, last)))


def _cost(queries: int, keys: int) -> int:
    return (queries + GATHER) * keys if queries else 0
