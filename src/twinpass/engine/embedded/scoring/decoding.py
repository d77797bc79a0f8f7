"""Decode: one new row a continuation and lane, all of them in one packed pass over keys and values in the pool."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from twinpass.core import WeightsVersion
from twinpass.engine.embedded.linear.lanes import LaneLayout, Running
from twinpass.engine.embedded.linear.norms import own_norms
from twinpass.engine.embedded.linear.products import own_products
from twinpass.engine.embedded.scoring import paged
from twinpass.engine.embedded.scoring.attention import Attending, AttentionPass, packed_attention
from twinpass.engine.embedded.scoring.indices import in_pool
from twinpass.engine.embedded.scoring.packing import Rows
from twinpass.engine.embedded.scoring.passes import LOGITS_BYTES, Passes
from twinpass.engine.embedded.scoring.pieces import Piece


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers ``first`` to ``last`` - 1, and the weights that each lane runs them with."""

    first: int
    last: int
    versions: Sequence[WeightsVersion]


@dataclass(frozen=True, slots=True)
class Line:
    """A continuation in the making: ``token`` is the next to be read under ``lane``, for the prompts numbered ``heirs``.

    ``slots`` [stages, room] say where its tokens' keys and values are; those of the first ``length`` are there. Lines of one
    ``kin`` have the slots of their first ``common`` tokens in common, by stage.
    """

    lane: int
    token: int
    heirs: tuple[int, ...]
    slots: Rows
    length: int
    kin: Sequence[int]
    common: Sequence[int]

    def followed(self, token: int, heir: int) -> "Line":
        """The line of one heir, with the next token."""
        slots = self.slots if len(self.heirs) == 1 else self.slots.copy()
        return Line(self.lane, token, (heir,), slots, self.length + 1, self.kin, self.common)


def advance(
    passes: Passes, stages: Sequence[Stage], running: Running, lanes: Sequence[Sequence[Line]]
) -> Iterator[tuple[list[Line], Tensor]]:
    """Run each line's next token; yields lines and their logits [lines, vocabulary], until all are told.

    The tokens' keys and values go to the slots at the lines' ``length``. Where a lane has fewer lines than the longest, what fills it
    up is computed, and nobody looks at it.
    """
    step = max(1, passes.chunk_rows // len(lanes))
    for start in range(0, max(map(len, lanes)), step):
        yield from _advance(passes, stages, running, [lines[start : start + step] for lines in lanes])


def _advance(
    passes: Passes, stages: Sequence[Stage], running: Running, lanes: Sequence[Sequence[Line]]
) -> Iterator[tuple[list[Line], Tensor]]:
    count, width = len(lanes), max(map(len, lanes))
    causal, device = passes.causal, passes.causal.device
    read, positions = np.zeros((2, count, width), np.int64)
    for lane, lines in enumerate(lanes):
        read[lane, : len(lines)] = [line.token for line in lines]
        positions[lane, : len(lines)] = [line.length for line in lines]
    ids, at = device.send(read, positions)
    hidden: Tensor | None = None
    with torch.no_grad(), own_norms(passes.norms), own_products(causal.linears, passes.linear):
        for number, stage in enumerate(stages):
            _require_own(passes, number, stage, lanes)
            with (
                packed_attention(causal.configs, _attending(passes, number, lanes, width)),
                running(LaneLayout(count, width)),
            ):
                output = causal.decode(ids, at, stage.first, stage.last, hidden)
            hidden = output["last_hidden_state"]
            passes.computed += count * width * (stage.last - stage.first)
        assert hidden is not None
        most = max(1, device.growth * LOGITS_BYTES // (4 * count * causal.vocabulary))
        for first in range(0, width, most):
            here = slice(first, min(width, first + most))
            with running(LaneLayout(count, here.stop - here.start)):
                logits = causal.head(ids[:, here], output, hidden[:, here])
            told = [own[here] for own in lanes]
            rows = [lane * len(logits[0]) + n for lane, own in enumerate(told) for n in range(len(own))]
            found = logits.flatten(0, 1)
            yield [line for own in told for line in own], found if len(rows) == len(found) else found[rows]


def _require_own(passes: Passes, number: int, stage: Stage, lanes: Sequence[Sequence[Line]]) -> None:
    """Make sure that what is written belongs to the lane's weights; what is read was checked when it came."""
    for version, lines in zip(stage.versions, lanes, strict=True):
        passes.cache.check(version, np.array([line.slots[number, line.length] for line in lines], np.int64))


def _attending(passes: Passes, number: int, lanes: Sequence[Sequence[Line]], width: int) -> Attending:
    if not paged.suits(passes.causal):
        pieces = list(_pieces(number, lanes, width))
        return AttentionPass(pieces, passes.pool, _store(number, lanes, width), passes.causal.device)
    lengths = np.zeros(len(lanes) * width, np.int64)
    slots = np.zeros((len(lengths), 1 + max(line.length for lines in lanes for line in lines)), np.int64)
    for lane, lines in enumerate(lanes):
        for row, line in enumerate(lines, lane * width):
            lengths[row] = line.length + 1
            slots[row, : lengths[row]] = line.slots[number, : lengths[row]]
    return paged.LinesPass(slots, lengths, passes.pool)


def _store(number: int, lanes: Sequence[Sequence[Line]], width: int) -> tuple[Rows, Rows]:
    """Rows of the pass, and the slots that their keys and values go to."""
    pairs = [
        (lane * width + n, line.slots[number, line.length])
        for lane, lines in enumerate(lanes)
        for n, line in enumerate(lines)
    ]
    rows, slots = np.array(pairs, np.int64).T.copy()
    return rows, slots


def _pieces(number: int, lanes: Sequence[Sequence[Line]], width: int) -> Iterator[Piece]:
    """What each row looks at: lines of a kin together where most of it is common, others one by one; what fills up, itself."""
    kins: dict[int, list[tuple[int, Line]]] = {}
    for lane, lines in enumerate(lanes):
        for n, line in enumerate(lines):
            kins.setdefault(line.kin[number], []).append((lane * width + n, line))
        for n in range(len(lines), width):
            yield _alone(lane * width + n, np.empty(0, np.int64))
    for members in kins.values():
        shared = members[0][1].common[number]
        own = sum(line.length + 1 - shared for _, line in members) / len(members)
        if len(members) == 1 or shared < (len(members) - 1) * own:
            for row, line in members:
                yield _alone(row, line.slots[number, : line.length])
        else:
            yield _together(number, members, shared)


def _alone(row: int, slots: Rows) -> Piece:
    length = len(slots)
    keys = np.append(in_pool(slots), row)
    zero, all_keys = np.zeros(1, np.int64), np.zeros(length + 1, np.int64)
    return Piece(zero + row, keys, zero + length, np.arange(length + 1), zero, all_keys, all_keys + 1)


def _together(number: int, members: Sequence[tuple[int, Line]], shared: int) -> Piece:
    rows = np.array([row for row, _ in members], np.int64)
    lengths = np.array([line.length for _, line in members], np.int64)
    keys = [in_pool(members[0][1].slots[number, :shared])]
    for row, line in members:
        keys.append(np.append(in_pool(line.slots[number, shared : line.length]), row))
    each = np.arange(len(members))
    own = np.repeat(each, lengths + 1 - shared)
    return Piece(
        rows,
        np.concatenate(keys),
        lengths,
        np.concatenate([np.arange(shared), *(np.arange(shared, length + 1) for length in lengths)]),
        each,
        np.concatenate([np.zeros(shared, np.int64), own]),
        np.concatenate([np.full(shared, len(members)), own + 1]),
    )
