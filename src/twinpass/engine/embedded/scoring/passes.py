"""Run a packed batch through the model in chunks, reading and writing keys and values where the cache says."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinpass.cache.pool import Pool
from twinpass.cache.prefix_cache import PrefixCache, Reservation
from twinpass.core import Score, WeightsVersion
from twinpass.engine.embedded.linear.lanes import LaneLayout, Running
from twinpass.engine.embedded.linear.norms import Norm, norms_of
from twinpass.engine.embedded.linear.products import Linear, own_products
from twinpass.engine.embedded.scoring.attention import AttentionPass, Enough, packed_attention
from twinpass.engine.embedded.scoring.indices import NO_CHUNK, NOWHERE, before_activation
from twinpass.engine.embedded.scoring.observe import BLOCK_BYTES, Observer, Part
from twinpass.engine.embedded.scoring.packing import Packed, Reads, Rows, unmark
from twinpass.engine.embedded.scoring.pieces import pieces_of
from twinpass.model.causal import CausalModel, log_softmax

LOGITS_BYTES = 64 << 20
"""Largest logits tensor; more positions are read one part after another."""

RunningOf = Callable[[Sequence[WeightsVersion]], Running]
"""The tandem for some lanes, named by their weights versions."""


def alone(layout: LaneLayout) -> AbstractContextManager[None]:
    """A pass of the model as it is."""
    return nullcontext()


@dataclass(frozen=True, slots=True)
class CachedRows:
    """Something computed before: where it is for each row, [lanes, R] or [1, R] for all, and under which weights each is."""

    slots: Rows
    versions: Sequence[WeightsVersion]

    def require_own(self, cache: PrefixCache) -> None:
        """Make sure that every slot belongs to the weights it is said to.

        Raises:
            StaleKVError: one does not.
        """
        for version, slots in zip(self.versions, self.slots, strict=True):
            cache.check(version, slots)


@dataclass(frozen=True)
class Batch:
    """What one run through some of the layers computes, for all its lanes.

    Args:
        packed: the trie; every lane has the same.
        versions: each lane's weights.
        fresh: rows to compute [R]; the keys and values of all others are in ``slots``.
        slots: where each row's keys and values are, or go to, [lanes, R]; NOWHERE for those not kept.
        first, last: the layers that run.
        hidden: the states that enter layer ``first``, unless it begins with the embeddings.
        marked: each lane's version of the marked rows, whose keys and values come from elsewhere.
        states: slots [R] for the states that leave layer ``last`` - 1 below the last; by default the same as ``slots``; NOWHERE
            for those not kept.
    """

    packed: Packed
    versions: Sequence[WeightsVersion]
    fresh: NDArray[np.bool_]
    slots: Rows
    first: int
    last: int
    hidden: CachedRows | None = None
    marked: Sequence[WeightsVersion] = ()
    states: Rows | None = None

    def require_own(self, cache: PrefixCache) -> None:
        """Make sure that every slot belongs to the weights it is about to be used with.

        Raises:
            StaleKVError: one does not.
        """
        marked = before_activation(self.packed.tokens)
        for version, slots in zip(self.versions, self.slots, strict=True):
            cache.check(version, slots[~marked & (slots != NOWHERE)])
        if self.marked:
            CachedRows(self.slots[:, marked], self.marked).require_own(cache)
        if self.hidden is not None:
            self.hidden.require_own(cache)


@dataclass
class Passes:
    """Runs batches on one model, cache and pool.

    ``linear`` is how layers multiply that no lane module runs, if in a way of its own. ``computed`` counts (row, layer) pairs that ran: token-layers. ``windows`` and ``layer_bytes`` are what the model's
    attention was seen to use: sliding windows, and bytes of a token's keys and values by layer.
    """

    causal: CausalModel
    cache: PrefixCache
    pool: Pool
    chunk_rows: int
    linear: Linear | None = None
    computed: int = 0
    windows: set[int | None] = field(default_factory=set)
    layer_bytes: dict[int, int] = field(default_factory=dict)

    @cached_property
    def norms(self) -> tuple[Norm, ...]:
        """The model's norms that can be computed in one pass over memory."""
        return norms_of(self.causal.model)

    def run(
        self, batch: Batch, running: Running, reads: Reads | None = None, observer: Observer | None = None
    ) -> list[list[Score]]:
        """Compute the fresh rows; ``[lane][request]`` log-probabilities of what ``reads`` asks for.

        An ``observer`` sees what the only lane computes at the rows that are read.
        """
        batch.require_own(self.cache)
        lanes = len(batch.versions)
        result = _Result(lanes, reads or Reads((), ()))
        seen = None if observer is None else (observer, Part(result.asked))
        chunks = _Chunks(batch, max(1, self.chunk_rows // lanes))
        with self.cache.reservation() as scratch, torch.no_grad(), own_products(self.causal.linears, self.linear):
            for index, rows in enumerate(chunks.rows):
                self._make_room(batch, scratch, chunks.needed_after(index))
                self._chunk(batch, running, chunks, index, rows, result, seen)
                done = chunks.last_needed_by(index)
                scratch.drop(batch.slots[:, done].reshape(-1))
                batch.slots[:, done] = NOWHERE
        if seen is not None:
            observer_of, part = seen
            observer_of.parts.append(part)
        return result.split()

    def trace(self, batch: Batch, running: Running, reads: Reads, linear: Linear) -> list[Tensor]:
        """The same for one lane, all rows at once and with a graph: each request's log-probabilities, differentiable.

        Layers multiply by ``linear``. What is not fresh comes from the pool, without a graph.
        """
        batch.require_own(self.cache)
        result = _Result(1, reads)
        chunks = _Chunks(batch, max(1, int(batch.fresh.sum())))
        with torch.enable_grad(), own_products(self.causal.linears, linear):
            for index, rows in enumerate(chunks.rows):
                self._chunk(batch, running, chunks, index, rows, result)
        return result.tensors()

    def run_whole(self, batch: Batch, running: Running) -> None:
        """The same in one chunk, so that no row's keys and values have to be kept for a later one."""
        batch.require_own(self.cache)
        chunks = _Chunks(batch, max(1, int(batch.fresh.sum())))
        with torch.no_grad(), own_products(self.causal.linears, self.linear):
            self._chunk(batch, running, chunks, 0, chunks.rows[0], _Result(len(batch.versions), Reads((), ())))

    def _make_room(self, batch: Batch, scratch: Reservation, rows: Rows) -> None:
        """Slots for rows that a later chunk looks at and that nobody keeps."""
        for lane, version in enumerate(batch.versions):
            batch.slots[lane, rows] = scratch.take(version, len(rows))

    def _chunk(
        self,
        batch: Batch,
        running: Running,
        chunks: "_Chunks",
        index: int,
        rows: Rows,
        result: "_Result",
        seen: tuple[Observer, Part] | None = None,
    ) -> None:
        lanes, packed = len(batch.versions), batch.packed
        pieces = list(pieces_of(packed, batch.fresh, batch.slots, rows))
        kept = np.flatnonzero((batch.slots[:, rows] >= 0).reshape(-1))
        store = (kept, batch.slots[:, rows].reshape(-1)[kept])
        device = self.causal.device
        layers = batch.last - batch.first
        outputs = (
            batch.states is not None or batch.last < self.causal.depth or seen is not None or result.reads_any(rows)
        )
        attention = AttentionPass(pieces, self.pool, store, device, None if outputs else layers)
        tokens = (unmark(packed.tokens[rows]), packed.positions[rows])
        ids, positions = device.send(*(np.tile(part, (lanes, 1)) for part in tokens))
        hidden = None
        if batch.hidden is not None:
            hidden = self.pool.read_hidden(device.send(batch.hidden.slots[:, rows])[0])
            hidden = hidden.expand(lanes, -1, -1).contiguous()
        read = np.empty(0, np.int64)
        watching: AbstractContextManager[None] = nullcontext()
        if seen is not None:
            read = np.concatenate([*result.wanted(rows, len(rows)), read])
            watching = seen[0].watching(device.send(np.searchsorted(rows, read))[0])
        with packed_attention(self.causal.configs, attention), running(LaneLayout(lanes, len(rows))), watching:
            try:
                output = self.causal.decode(ids, positions, batch.first, batch.last, hidden)
            except Enough:
                output = None
        self.computed += lanes * len(rows) * layers
        self.windows |= attention.windows
        self.layer_bytes |= attention.layer_bytes
        if output is None:
            return
        states: Tensor = output["last_hidden_state"]
        if batch.states is not None:
            kept_states = np.flatnonzero(batch.states[rows] != NOWHERE)
            at, into = device.send(kept_states, batch.states[rows][kept_states])
            self.pool.write_hidden(into, states[0, at])
        elif batch.last < self.causal.depth:
            self.pool.write_hidden(device.send(batch.slots[:, rows])[0], states)
        if seen is not None and len(read):
            seen[0].take(seen[1], read, ids)
        columns = result.columns
        width = self.causal.vocabulary if columns is None else len(columns)
        room = BLOCK_BYTES if seen is not None and seen[1].once else LOGITS_BYTES
        for wanted in result.wanted(rows, max(1, device.growth * room // (4 * lanes * width))):
            reads = result.reads(wanted)
            at, rows_of, targets, *some = device.send(
                np.searchsorted(rows, wanted), reads.rows, reads.targets, *([] if columns is None else [columns])
            )
            with running(LaneLayout(lanes, len(wanted), columns=some[0] if some else None)):
                if seen is not None and seen[1].once:
                    within = device.send(np.searchsorted(read, wanted))[0]
                    result.put(reads, seen[0].score(seen[1], ids[:, at], within, rows_of, targets))
                    continue
                logits = self.causal.head(ids[:, at], output, states[:, at])
            result.put(reads, (log_softmax(logits) if columns is None else logits)[:, rows_of, targets])


class _Chunks:
    """The fresh rows of a batch cut into runs, and which rows later runs look at."""

    def __init__(self, batch: Batch, size: int) -> None:
        self._batch = batch
        fresh = np.flatnonzero(batch.fresh)
        self.rows = [fresh[start : start + size] for start in range(0, len(fresh), size)]
        self._chunk_of = np.full(batch.packed.rows, NO_CHUNK, np.int64)
        for index, rows in enumerate(self.rows):
            self._chunk_of[rows] = index
        self._until = np.full(batch.packed.rows, NO_CHUNK, np.int64)
        for segment in batch.packed.segments:
            last = self._chunk_of[segment.start : segment.stop].max()
            self._until[segment.path] = np.maximum(self._until[segment.path], last)
        self._unkept = batch.slots[0] == NOWHERE

    def needed_after(self, index: int) -> Rows:
        """Rows of chunk ``index`` that need a slot for later chunks and have none."""
        return np.flatnonzero((self._chunk_of == index) & (self._until > index) & self._unkept)

    def last_needed_by(self, index: int) -> Rows:
        """Rows that were given a slot for later chunks, of which ``index`` is the last."""
        return np.flatnonzero(
            (self._until == index) & (self._chunk_of < index) & (self._chunk_of != NO_CHUNK) & self._unkept
        )


@dataclass(frozen=True, slots=True)
class _Reads:
    """What is read of some rows: their numbers among those [k], and the targets' among the columns [k]; whose reads they are."""

    rows: Rows
    targets: Rows
    here: Rows


class _Result:
    """Log-probabilities, or logits of ``columns``, as they come in, chunk by chunk."""

    def __init__(self, lanes: int, reads: Reads) -> None:
        self.asked, self.columns = reads, reads.columns
        rows = np.concatenate([np.empty(0, np.int64), *reads.rows])
        self._rows, self._which = np.unique(rows, return_inverse=True)
        targets = np.concatenate([np.empty(0, np.int64), *reads.targets])
        self._targets = targets if self.columns is None else np.searchsorted(self.columns, targets)
        self._shape = (lanes, len(rows))
        self._parts: list[tuple[Rows, Tensor]] = []

    def wanted(self, rows: Rows, most: int) -> Iterator[Rows]:
        """Those of ``rows`` (sorted) that are read, at most ``most`` at a time."""
        wanted = np.intersect1d(self._rows, rows, assume_unique=True)
        for start in range(0, len(wanted), most):
            yield wanted[start : start + most]

    def reads_any(self, rows: Rows) -> bool:
        """Whether anything is read of ``rows`` (sorted)."""
        return next(self.wanted(rows, 1), None) is not None

    def reads(self, wanted: Rows) -> _Reads:
        """What is read of these rows."""
        first, last = np.searchsorted(self._rows, [wanted[0], wanted[-1]])
        here = np.flatnonzero((self._which >= first) & (self._which <= last))
        return _Reads(np.searchsorted(wanted, self._rows[self._which[here]]), self._targets[here], here)

    def put(self, reads: _Reads, found: Tensor) -> None:
        """Take in what was read [lanes, k], without waiting for it."""
        self._parts.append((reads.here, found))

    def tensors(self) -> list[Tensor]:
        """The one lane's values by request, as they were put in."""
        found = torch.cat([part for _, part in self._parts], 1)[0]
        here = torch.from_numpy(np.argsort(np.concatenate([here for here, _ in self._parts])))
        return list(torch.split(found[here.to(found.device)], [len(targets) for targets in self.asked.targets]))

    def split(self) -> list[list[Score]]:
        """Values by lane and request."""
        values = np.full(self._shape, np.nan)
        if self._parts:
            found = torch.cat([part for _, part in self._parts], 1).double().cpu().numpy()
            values[:, np.concatenate([here for here, _ in self._parts])] = found
        bounds = np.cumsum([len(targets) for targets in self.asked.targets])[:-1]
        return [np.split(lane, bounds) if len(self.asked.rows) else [] for lane in values]
