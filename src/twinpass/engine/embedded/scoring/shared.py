"""What lanes share of a batch: found in the cache or on disk, or computed once, as rows that each lane's rest reads."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinpass.cache.spill import Spill
from twinpass.core import Request, Tokens, WeightsVersion
from twinpass.engine.embedded.scoring.indices import NOWHERE, before_activation
from twinpass.engine.embedded.scoring.jobs import SharedByLanes
from twinpass.engine.embedded.scoring.packing import Packed, Rows, groups, mark, pack
from twinpass.engine.embedded.scoring.passes import Batch, CachedRows, Passes, alone
from twinpass.phases import phase


@dataclass(frozen=True, slots=True)
class SharedRows:
    """What lanes share of a group: its trie, and the slots of all its rows [R]."""

    packed: Packed
    slots: Rows


@dataclass(frozen=True, slots=True)
class SharedPrefixes:
    """Finds what lanes share, or computes it.

    Args:
        passes: runs batches.
        spill: where shared keys and values are also kept on disk.
    """

    passes: Passes
    spill: Spill | None = None

    def of(self, requests: Sequence[Request], shared_by_lanes: SharedByLanes, stack: ExitStack) -> SharedRows:
        """Find or compute what lanes share; it stays until ``stack`` closes."""
        version = shared_by_lanes.version
        sequences = sorted({shared_tokens(request, shared_by_lanes) for request in requests} - {()})
        packed = pack(sequences)
        slots = np.full(packed.rows, NOWHERE, np.int64)
        for tokens in sequences:
            self.lease(tokens, packed.path_of[tokens], version, slots, stack)
        fresh = slots == NOWHERE
        if not fresh.any():
            return SharedRows(packed, slots)
        reservation = stack.enter_context(self.passes.cache.reservation())
        slots[fresh] = reservation.take(version, int(fresh.sum()))
        missing = fresh.copy()
        if self.spill is not None:
            for tokens in sequences:
                path = packed.path_of[tokens]
                found = self.spill.fetch(tokens, np.flatnonzero(missing[path]), slots[path], self.passes.pool)
                missing[path[found]] = False
        if below := shared_by_lanes.sharing.below:
            self._run_lower(sequences, packed, missing, slots, below)
            states, before = CachedRows(slots[None], [version]), missing & before_activation(packed.tokens)
            upper = Batch(packed, [version], before, slots[None].copy(), below, shared_by_lanes.sharing.layers, states)
            if before.any():
                self.passes.run(upper, alone)
        else:
            self.passes.run(Batch(packed, [version], missing, slots[None], 0, shared_by_lanes.sharing.layers), alone)
        if self.spill is not None:
            self._store(self.spill, packed, missing, slots)
        for tokens in sequences:
            path = packed.path_of[tokens]
            reservation.insert(version, tokens, slots[path])
            self.lease(tokens, path, version, slots, stack)
        return SharedRows(packed, slots)

    def _run_lower(
        self, sequences: Sequence[Tokens], packed: Packed, missing: NDArray[np.bool_], slots: Rows, below: int
    ) -> None:
        """Run the layers below ``below`` on whole sequences, of which a row is missing, and keep the states that leave them.

        Keys and values of those layers are of no use afterwards. None is kept, as every run holds its sequences from their
        first token on; tokens that another run had are computed once more.
        """
        lacking = [tokens for tokens in sequences if missing[packed.path_of[tokens]].any()]
        for part in groups(lacking, self.passes.chunk_rows):
            own = pack(lacking[part])
            states = np.full(own.rows, NOWHERE, np.int64)
            for tokens in lacking[part]:
                path = packed.path_of[tokens]
                states[own.path_of[tokens]] = np.where(missing[path], slots[path], NOWHERE)
            nowhere, version = np.full((1, own.rows), NOWHERE, np.int64), WeightsVersion("lower", below)
            self.passes.run_whole(
                Batch(own, [version], np.ones(own.rows, bool), nowhere, 0, below, states=states), alone
            )

    def _store(self, spill: Spill, packed: Packed, computed: NDArray[np.bool_], slots: Rows) -> None:
        """Write what was just computed to disk; of every edge that is its end."""
        ends = [(edge, int(computed[edge.start : edge.stop].sum())) for edge in packed.segments]
        new = [(edge, count) for edge, count in ends if count]
        if new:
            sequences = [(tuple(packed.tokens[edge.path].tolist()), len(edge.path) - count) for edge, count in new]
            rows = np.concatenate([np.arange(edge.stop - count, edge.stop) for edge, count in new])
            spill.store(sequences, slots[rows], self.passes.pool)

    @phase("cache")
    def lease(self, tokens: Tokens, path: Rows, version: WeightsVersion, slots: Rows, stack: ExitStack) -> None:
        """Pin what is held of a sequence until ``stack`` closes, and write where it is into ``slots`` [R]."""
        found = stack.enter_context(self.passes.cache.lease(version, tokens))
        slots[path[: len(found)]] = found


def shared_tokens(request: Request, shared_by_lanes: SharedByLanes) -> Tokens:
    """The tokens of a request that lanes share something of."""
    if shared_by_lanes.sharing.tokens == "all":
        return request.inputs
    if shared_by_lanes.sharing.below:
        return mark(request.inputs, request.active_from)
    return request.inputs[: request.active_from]


def shared_work(packed: Packed, shared_by_lanes: SharedByLanes) -> int:
    """Token-layers that lanes share of a group."""
    if shared_by_lanes.sharing.tokens == "all" or not shared_by_lanes.sharing.below:
        return packed.rows * shared_by_lanes.sharing.layers
    before = int(before_activation(packed.tokens).sum())
    return before * shared_by_lanes.sharing.layers + (packed.rows - before) * shared_by_lanes.sharing.below
