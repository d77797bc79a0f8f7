"""Pack a batch of token sequences into one row per distinct (prefix, token): no padding, nothing encoded twice.

The sequences form a trie, whose edges are written one after another, depth first::

    inputs   A B C D        trie  A B --- C --- D         rows    0 1 | 2 | 3 | 4 5 | 6
             A B C E F             |      `---- E F       tokens  A B   C   D   E F   G
             A B G                 `----- G

Every row knows its position in its own sequence and the rows it may attend to: those on its path.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinpass.core import Request

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Segment:
    """One edge of the trie: rows ``[start, stop)``, and ``path``, the rows of its ancestors and its own, in order."""

    start: int
    stop: int
    path: Rows


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed batch of ``R`` rows: ``tokens`` and ``positions`` [R], its segments, and what to read where.

    ``reads[i]`` holds the rows whose outputs predict request ``i``'s completion, ``targets[i]`` the tokens predicted.
    """

    tokens: Rows
    positions: Rows
    segments: tuple[Segment, ...]
    reads: tuple[Rows, ...]
    targets: tuple[Rows, ...]

    @property
    def rows(self) -> int:
        """Rows that run, per lane."""
        return len(self.tokens)


def pack(requests: Sequence[Request]) -> Packed:
    """Merge the requests' inputs into a trie and lay it out in rows, depth first."""
    unique = sorted({request.inputs for request in requests})
    tokens: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    path_of: dict[tuple[int, ...], Rows] = {}

    todo = [(tree, 0, np.empty(0, np.int64)) for tree in _by_token(unique, 0)][::-1]
    while todo:
        group, depth, path = todo.pop()
        first, last = group[0], group[-1]
        end = depth + _common(first[depth:], last[depth:])
        start = len(tokens)
        tokens.extend(first[depth:end])
        positions.extend(range(depth, end))
        path = np.concatenate([path, np.arange(start, len(tokens))])
        segments.append(Segment(start, len(tokens), path))
        if len(first) == end:
            path_of[first] = path
            group = group[1:]
        todo += [(child, end, path) for child in _by_token(group, end)][::-1]
    return Packed(
        np.array(tokens, np.int64),
        np.array(positions, np.int64),
        tuple(segments),
        tuple(path_of[r.inputs][len(r.prompt) - 1 :] for r in requests),
        tuple(np.array(r.completion, np.int64) for r in requests),
    )


def chunks(requests: Sequence[Request], budget: int) -> Iterator[range]:
    """Split a batch into runs of requests whose packed rows stay near ``budget`` (one request may exceed it)."""
    start, rows = 0, 0
    previous: tuple[int, ...] = ()
    for index, request in enumerate(requests):
        inputs = request.inputs
        new = len(inputs) - (_common(previous, inputs) if index > start else 0)
        if index > start and rows + new > budget:
            yield range(start, index)
            start, rows, new = index, 0, len(inputs)
        rows += new
        previous = inputs
    if requests:
        yield range(start, len(requests))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    return next(i for i in range(length) if a[i] != b[i])


def _by_token(group: Sequence[tuple[int, ...]], depth: int) -> Iterator[Sequence[tuple[int, ...]]]:
    """Cut a sorted group where the token at ``depth`` changes."""
    start = 0
    for i in range(1, len(group) + 1):
        if i == len(group) or group[i][depth] != group[start][depth]:
            yield group[start:i]
            start = i
