"""Pack a batch of token sequences into one row per distinct (prefix, token): no padding, nothing encoded twice.

The sequences form a trie, whose edges are written one after another, depth first::

    inputs   A B C D        trie  A B --- C --- D         rows    0 1 | 2 | 3 | 4 5 | 6
             A B C E F             |      `---- E F       tokens  A B   C   D   E F   G
             A B G                 `----- G

Every row knows its position in its own sequence and the rows it may attend to: those on its path.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinpass.core import Request, Tokens
from twinpass.phases import phase

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Segment:
    """One edge of the trie: rows ``[start, stop)``, and ``path``, the rows of its ancestors and its own, in order."""

    start: int
    stop: int
    path: Rows


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed batch of ``R`` rows: ``tokens`` and ``positions`` [R], its segments, and the rows of each sequence."""

    tokens: Rows
    positions: Rows
    segments: tuple[Segment, ...]
    path_of: Mapping[Tokens, Rows]

    @property
    def rows(self) -> int:
        """Rows that one lane has."""
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Reads:
    """What to read where: request ``i``'s completion token ``targets[i][j]`` is predicted by row ``rows[i][j]``.

    ``columns``: the only tokens (sorted) whose logits are taken, where logits will do; None: log-probabilities are read.
    """

    rows: tuple[Rows, ...]
    targets: tuple[Rows, ...]
    columns: Rows | None = None

    @classmethod
    def of(cls, requests: Sequence[Request], paths: Sequence[Rows], columns: Rows | None = None) -> "Reads":
        """The reads of requests whose inputs lie on ``paths``."""
        rows = tuple(path[len(request.prompt) - 1 :] for request, path in zip(requests, paths, strict=True))
        return cls(rows, tuple(np.array(request.completion, np.int64) for request in requests), columns)


@phase("cache")
def pack(sequences: Iterable[Tokens]) -> Packed:
    """Merge sequences into a trie and lay it out in rows, depth first."""
    unique = sorted({sequence for sequence in sequences if sequence})
    tokens: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    path_of: dict[Tokens, Rows] = {(): np.empty(0, np.int64)}

    todo = [(tree, 0, np.empty(0, np.int64)) for tree in _by_token(unique, 0)][::-1]
    while todo:
        group, depth, path = todo.pop()
        first, last = group[0], group[-1]
        end = depth + common_length(first[depth:], last[depth:])
        start = len(tokens)
        tokens.extend(first[depth:end])
        positions.extend(range(depth, end))
        path = np.concatenate([path, np.arange(start, len(tokens))])
        segments.append(Segment(start, len(tokens), path))
        if len(first) == end:
            path_of[first] = path
            group = group[1:]
        todo += [(child, end, path) for child in _by_token(group, end)][::-1]
    return Packed(np.array(tokens, np.int64), np.array(positions, np.int64), tuple(segments), path_of)


def groups(sequences: Sequence[Tokens], budget: int) -> Iterator[slice]:
    """Cut a batch into runs whose packed rows stay within about ``budget`` (one sequence may exceed it)."""
    start, rows = 0, 0
    previous: Tokens = ()
    for index, sequence in enumerate(sequences):
        new = len(sequence) - (common_length(previous, sequence) if index > start else 0)
        if index > start and rows + new > budget:
            yield slice(start, index)
            start, rows, new = index, 0, len(sequence)
        rows += new
        previous = sequence
    if sequences:
        yield slice(start, len(sequences))


def mark(sequence: Tokens, active_from: int) -> Tokens:
    """Mark tokens before the activation point, where the same prefix means something else: token t becomes -1 - t, below 0."""
    return tuple(-1 - token for token in sequence[:active_from]) + sequence[active_from:]


def unmark(tokens: Rows) -> Rows:
    """The token ids of marked tokens."""
    return np.where(tokens < 0, -1 - tokens, tokens)


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    return next(i for i in range(length) if a[i] != b[i])


def _by_token(group: Sequence[Tokens], depth: int) -> Iterator[Sequence[Tokens]]:
    """Cut a sorted group where the token at ``depth`` changes."""
    start = 0
    for i in range(1, len(group) + 1):
        if i == len(group) or group[i][depth] != group[start][depth]:
            yield group[start:i]
            start = i
