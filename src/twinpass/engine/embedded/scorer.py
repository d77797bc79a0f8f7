"""Score packed batches: what lanes share runs once, then each lane runs the rest."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinpass.cache.spill import Spill
from twinpass.core import BASE, Held, Request, Score, WeightsVersion, Work
from twinpass.engine.embedded.packing import Packed, Reads, Rows, Tokens, groups, mark, pack
from twinpass.engine.embedded.passes import Batch, Passes, Running, alone
from twinpass.errors import CacheFullError
from twinpass.reuse.base import Sharing


@dataclass(frozen=True, slots=True)
class Shared:
    """What lanes share of a group: its trie, and the slots of all its rows [R]."""

    packed: Packed
    slots: Rows


class PackedScorer:
    """Scores requests under lanes of one model.

    Args:
        passes: runs batches.
        sharing: what lanes share, or None.
        slot_bytes: bytes of one token's keys and values, for reports.
        spill: where shared keys and values are also kept on disk.
    """

    def __init__(
        self, passes: Passes, sharing: Sharing | None, slot_bytes: int = 0, spill: Spill | None = None
    ) -> None:
        self.passes, self.sharing, self.slot_bytes, self.spill = passes, sharing, slot_bytes, spill
        self._causal, self._cache = passes.causal, passes.cache

    def score(
        self, requests: Sequence[Request], versions: Sequence[WeightsVersion], shared: WeightsVersion, running: Running
    ) -> tuple[list[list[Score]], Work]:
        """``[lane][request]`` log-probabilities, and the work they took.

        Args:
            versions: each lane's weights, which ``running`` makes the model compute.
            shared: the weights of what lanes share, which the model computes as it is.

        Raises:
            CacheFullError: the cache's budget is too small for a request.
        """
        values: list[list[Score]] = [[] for _ in versions]
        work = Work()
        try:
            for part in self._groups(requests):
                scores, took = self._group(part, versions, shared, running)
                work += took
                for lane, own in zip(values, scores, strict=True):
                    lane.extend(own)
        except CacheFullError as error:
            raise CacheFullError(
                f"{error}; raise reuse.budget, which is room for {self._cache.capacity} tokens now "
                f"({self._cache.capacity * self.slot_bytes} bytes), or train on shorter prompts"
            ) from error
        finally:
            for version in versions:
                if version.lane != BASE:
                    self._cache.invalidate(version)
            if self.sharing is not None and not self.sharing.kept:
                self._cache.invalidate(shared)
        return values, work

    def warm(self, requests: Sequence[Request], version: WeightsVersion) -> None:
        """Find or compute what lanes would share and keep."""
        if self.sharing is not None and self.sharing.kept:
            for part in self._groups(requests):
                with ExitStack() as stack:
                    self._share(part, version, stack)

    def forget(self, version: WeightsVersion) -> None:
        """Weights that will not come back."""
        self._cache.invalidate(version)

    @property
    def held(self) -> Held:
        """What the cache holds."""
        size = self.slot_bytes
        spilled = 0 if self.spill is None else self.spill.written
        return Held(self._cache.held * size, self._cache.evicted * size, spilled)

    def _groups(self, requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
        """What is shared has to be in the cache all at once: so many requests at a time as leave half of it free."""
        if self.sharing is None:
            yield requests
            return
        for part in groups([self._shared_tokens(request) for request in requests], self._cache.capacity // 2):
            yield requests[part]

    def _group(
        self, requests: Sequence[Request], versions: Sequence[WeightsVersion], version: WeightsVersion, running: Running
    ) -> tuple[list[list[Score]], Work]:
        started = self.passes.computed
        with ExitStack() as stack:
            shared = self._share(requests, version, stack) if self.sharing is not None else None
            ran_shared = self.passes.computed - started
            packed = pack([self._marked(request) for request in requests])
            values = self._run_lanes(requests, packed, versions, shared, version, running, stack)
        computed = self.passes.computed - started
        lanes, depth = len(versions), self._causal.depth
        demand = lanes * depth * sum(len(request.inputs) for request in requests)
        reused = {}
        if self.sharing is not None and shared is not None:
            reused[self.sharing.source] = lanes * shared.packed.rows * self.sharing.layers - ran_shared
        reused["shared_prefix"] = demand - computed - sum(reused.values())
        return values, Work(demand, computed, reused)

    def _share(self, requests: Sequence[Request], version: WeightsVersion, stack: ExitStack) -> Shared:
        """Find or compute what lanes share; it stays until ``stack`` closes."""
        sequences = sorted({self._shared_tokens(request) for request in requests} - {()})
        packed = pack(sequences)
        slots = np.full(packed.rows, -1, np.int64)
        for tokens in sequences:
            self._lease(tokens, packed.path_of[tokens], version, slots, stack)
        fresh = slots < 0
        if not fresh.any():
            return Shared(packed, slots)
        reservation = stack.enter_context(self._cache.reservation())
        slots[fresh] = reservation.take(version, int(fresh.sum()))
        missing = fresh.copy()
        if self.spill is not None:
            for tokens in sequences:
                path = packed.path_of[tokens]
                found = self.spill.fetch(tokens, np.flatnonzero(missing[path]), slots[path], self.passes.pool)
                missing[path[found]] = False
        assert self.sharing is not None
        self.passes.run(Batch(packed, [version], missing, slots[None], 0, self.sharing.layers), alone)
        if self.spill is not None:
            self._store(self.spill, packed, missing, slots)
        for tokens in sequences:
            reservation.insert(version, tokens, slots[packed.path_of[tokens]])
            self._lease(tokens, packed.path_of[tokens], version, slots, stack)
        return Shared(packed, slots)

    def _store(self, spill: Spill, packed: Packed, computed: NDArray[np.bool_], slots: Rows) -> None:
        """Write what was just computed to disk; of every edge that is its end."""
        ends = [(edge, int(computed[edge.start : edge.stop].sum())) for edge in packed.segments]
        new = [(edge, count) for edge, count in ends if count]
        if new:
            sequences = [(tuple(packed.tokens[edge.path].tolist()), len(edge.path) - count) for edge, count in new]
            rows = np.concatenate([np.arange(edge.stop - count, edge.stop) for edge, count in new])
            spill.store(sequences, slots[rows], self.passes.pool)

    def _lease(self, tokens: Tokens, path: Rows, version: WeightsVersion, slots: Rows, stack: ExitStack) -> None:
        """Pin what is held of a sequence until ``stack`` closes, and write where it is into ``slots`` [R]."""
        found = stack.enter_context(self._cache.lease(version, tokens))
        slots[path[: len(found)]] = found

    def _run_lanes(
        self,
        requests: Sequence[Request],
        packed: Packed,
        versions: Sequence[WeightsVersion],
        shared: Shared | None,
        version: WeightsVersion,
        running: Running,
        stack: ExitStack,
    ) -> list[list[Score]]:
        paths = [packed.path_of[self._marked(request)] for request in requests]
        reads = Reads.of(requests, paths)
        slots = np.full((len(versions), packed.rows), -1, np.int64)
        fresh = np.ones(packed.rows, bool)
        first, hidden = 0, None
        if shared is not None and self.sharing is not None and self.sharing.tokens == "before_activation":
            for request, path in zip(requests, paths, strict=True):
                tokens = self._shared_tokens(request)
                slots[:, path[: len(tokens)]] = shared.slots[shared.packed.path_of[tokens]]
            fresh = packed.tokens >= 0
        elif shared is not None and self.sharing is not None:
            first, hidden = self.sharing.layers, shared.slots
        batch = Batch(packed, versions, fresh, slots, first, self._causal.depth, hidden, version)
        if [one.lane for one in versions] == [BASE] and fresh.all():
            return self._run_base(requests, paths, batch, running, reads, stack)
        return self.passes.run(batch, running, reads)

    def _run_base(
        self,
        requests: Sequence[Request],
        paths: Sequence[Rows],
        batch: Batch,
        running: Running,
        reads: Reads,
        stack: ExitStack,
    ) -> list[list[Score]]:
        """The base lane lasts until the next update: prefixes that prompts share are kept for the calls until then."""
        version, (slots,) = batch.versions[0], batch.slots
        read = np.zeros(batch.packed.rows, bool)
        read[np.concatenate(reads.rows)] = True
        prompts = {request.prompt: path[: len(request.prompt)] for request, path in zip(requests, paths, strict=True)}
        for prompt, path in prompts.items():
            self._lease(prompt, path, version, slots, stack)
        batch.fresh[:] = (slots < 0) | read
        count = np.zeros(batch.packed.rows, np.int64)
        for path in prompts.values():
            count[path] += 1
        keep = (count > 1) & (slots < 0) & ~read
        reservation = stack.enter_context(self._cache.reservation())
        if self._cache.capacity >= 4 * keep.sum():
            slots[keep] = reservation.take(version, int(keep.sum()))
        values = self.passes.run(batch, running, reads)
        for prompt, path in prompts.items():
            held = int(np.argmax(np.append(slots[path] < 0, True)))
            reservation.insert(version, prompt[:held], slots[path[:held]])
        return values

    def _marked(self, request: Request) -> Tokens:
        return mark(request.inputs, len(self._shared_tokens(request)) if self._by_activation else 0)

    def _shared_tokens(self, request: Request) -> Tokens:
        return request.inputs[: request.active_from] if self._by_activation else request.inputs

    @property
    def _by_activation(self) -> bool:
        return self.sharing is not None and self.sharing.tokens == "before_activation"
