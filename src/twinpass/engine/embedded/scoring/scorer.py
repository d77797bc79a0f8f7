"""Score packed batches: what lanes share runs once, then each lane runs the rest."""

from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack
from dataclasses import replace
from typing import Self

import numpy as np
from torch import Tensor

from twinpass.cache.pool import Pool
from twinpass.cache.prefix_cache import PrefixCache
from twinpass.cache.spill import Spill
from twinpass.core import BASE, CacheStatistics, PrefixReport, Request, Score, Term, Tokens, WeightsVersion, Work
from twinpass.engine.embedded.linear.products import Linear
from twinpass.engine.embedded.scoring.indices import NOWHERE, before_activation
from twinpass.engine.embedded.scoring.jobs import Job, Result, SharedByLanes
from twinpass.engine.embedded.scoring.packing import Packed, Reads, Rows, groups, mark, pack
from twinpass.engine.embedded.scoring.passes import Batch, CachedRows, Passes, alone
from twinpass.engine.embedded.scoring.prefixes import Prefixes, Prepared, prefix_lengths
from twinpass.engine.embedded.scoring.shared import SharedPrefixes, SharedRows, shared_tokens, shared_work
from twinpass.errors import CacheFullError
from twinpass.model.causal import CausalModel
from twinpass.reuse.base import Policy
from twinpass.reuse.plan import Spans

NARROW = 8
"""All logits are computed if more than one in so many is read."""


class PackedScorer:
    """Scores requests under lanes of one model.

    Args:
        passes: runs batches.
        slot_bytes: bytes of one token's keys and values, for reports.
        spill: where shared keys and values are also kept on disk.

    ``narrow``: whether the head may compute the logits of a few tokens alone, where requests are relative.
    """

    def __init__(self, passes: Passes, slot_bytes: int = 0, spill: Spill | None = None) -> None:
        self.passes, self.slot_bytes = passes, slot_bytes
        self.shared = SharedPrefixes(passes, spill)
        self.narrow = False
        self.prefixes = Prefixes(passes)
        self._causal, self._cache = passes.causal, passes.cache

    @classmethod
    def sized(
        cls,
        causal: CausalModel,
        policy: Policy,
        cuts: Set[int],
        layer_bytes: Sequence[int],
        hidden_bytes: int,
        chunk_rows: int,
        spill: Spill | None,
        *,
        states_only: bool = False,
    ) -> Self:
        """A scorer whose cache has the policy's size.

        Args:
            cuts: the layers below which all tokens may be shared (0: nowhere).
            layer_bytes: bytes of a token's keys and values, by layer.
            hidden_bytes: bytes of a token's hidden states, where they are kept as well.
            states_only: whether below the cut no keys and values are kept, only the states that leave it.
        """
        cut = max(cuts) if len(cuts) == 1 else 0
        lower, upper = sum(layer_bytes[:cut]), sum(layer_bytes[cut:])
        slot_bytes = (upper if states_only else max(lower, upper)) + hidden_bytes
        slots = policy.budget // slot_bytes
        pool = Pool(slots, cut, causal.device.torch_device)
        passes = Passes(causal, PrefixCache(slots, policy.page_size), pool, chunk_rows)
        return cls(passes, slot_bytes, spill)

    def score(self, job: Job) -> Result:
        """``[lane][request]`` log-probabilities (nats) of the completions' tokens, and the token-layers that they took.

        Raises:
            CacheFullError: the cache's budget is too small for a request.
        """
        result = Result([[] for _ in job.versions])
        job = self._narrowed(job)
        if job.spans is not None:
            lengths, shared = prefix_lengths(job.requests, job.spans)
            job = replace(job, prefixes=lengths, returning=shared)
        try:
            for part in self._groups(job):
                result.extend(self._group_or_again(job.part(part)))
        except CacheFullError as error:
            lanes, longest = len(job.versions), max(len(request.inputs) for request in job.requests)
            room, enough = (count * self.slot_bytes for count in (self._cache.capacity, 2 * (lanes + 1) * longest))
            raise CacheFullError(
                f"{error}; reuse.budget is {room} bytes in tokens, and sequences of {longest} tokens under {lanes} lanes "
                f"need about {enough}: raise reuse.budget or engine.chunk_rows, or train on shorter prompts"
            ) from error
        finally:
            own = {version for version in job.versions if version.lane != BASE} - self.prefixes.retained
            self.forget(list(own))
            if job.shared_by_lanes is not None and not job.shared_by_lanes.sharing.kept:
                self.forget([job.shared_by_lanes.version])
        return result

    def cut(self, job: Job, rows: int) -> list[slice]:
        """The requests that :meth:`trace` takes at a time: as many as have about so many rows of their own, and fit into the cache."""
        found = []
        for part in self._groups(job):
            requests, places = job.requests[part], dict[Tokens, int]()
            starts = [len(request.inputs) - len(_own_tokens(request, job.shared_by_lanes)) for request in requests]
            own = [
                (-places.setdefault(request.inputs[:start], len(places)), *request.inputs[start:])
                for request, start in zip(requests, starts, strict=True)
            ]  # one token stands for all that is shared
            found += [slice(part.start + few.start, part.start + few.stop) for few in groups(own, rows)]
        return found

    def trace(self, job: Job, linear: Linear) -> tuple[list[Tensor], Work]:
        """Differentiable log-probabilities of the base lane, by request; only what lanes do not share has a graph."""
        job, started = self._narrowed(job), self.passes.computed
        reused = dict[str, int]()
        with ExitStack() as stack:
            if job.shared_by_lanes is None:
                batch, reads = self._lanes(job)
            else:
                shared = self.shared.of(job.requests, job.shared_by_lanes, stack)
                ran = self.passes.computed - started
                reused[job.shared_by_lanes.sharing.source] = max(
                    0, shared.packed.rows * job.shared_by_lanes.sharing.layers - ran
                )
                batch, reads = self._above(job, job.shared_by_lanes, shared)
            values = self.passes.trace(batch, job.running_of(job.versions), reads, linear)
        if job.shared_by_lanes is not None and not job.shared_by_lanes.sharing.kept:
            self.forget([job.shared_by_lanes.version])
        computed, demand = self.passes.computed - started, self._causal.depth * job.demand
        reused["shared_prefix"] = demand - computed - sum(reused.values())
        return values, Work(demand, computed, reused)

    def _narrowed(self, job: Job) -> Job:
        """The job, told which columns of the head suffice, where these are so few that the head can leave out the others."""
        if not self.narrow or not all(request.relative for request in job.requests):
            return job
        columns = np.unique(np.concatenate([request.completion for request in job.requests]))
        return replace(job, columns=columns if len(columns) * NARROW <= self._causal.vocabulary else None)

    def warm(self, requests: Sequence[Request], shared_by_lanes: SharedByLanes) -> None:
        """Find or compute what lanes would share and keep."""
        if shared_by_lanes.sharing.kept:
            for part in self._groups(Job(requests, (), lambda versions: alone, shared_by_lanes)):
                with ExitStack() as stack:
                    self.shared.of(requests[part], shared_by_lanes, stack)

    def move(self, terms: Sequence[Term], version: WeightsVersion) -> None:
        """An update brings the weights to ``version``: what is carried follows, or is dropped."""
        carry = self.prefixes.carry
        if carry is not None and not carry.move(terms, version):
            self.prefixes.drop()

    def forget(self, versions: Sequence[WeightsVersion]) -> None:
        """Drop what was computed under these weights, which will not be in force again."""
        for version in versions:
            self._cache.invalidate(version)

    @property
    def held(self) -> CacheStatistics:
        """What the cache holds."""
        size = self.slot_bytes
        spill = self.shared.spill
        spilled = 0 if spill is None else spill.written
        return CacheStatistics(self._cache.held * size, self._cache.evicted * size, spilled)

    def _groups(self, job: Job) -> Iterator[slice]:
        """Cut the requests into groups: what a group shares is in the cache all at once, and leaves room for the rest."""
        if job.shared_by_lanes is not None:
            sequences = [shared_tokens(request, job.shared_by_lanes) for request in job.requests]
            yield from groups(sequences, self._room(job, job.shared_by_lanes))
        elif job.spans is not None:
            sequences = [request.inputs[:length] for request, length in zip(job.requests, job.prefixes, strict=True)]
            yield from groups(sequences, self._cache.capacity // (2 * (len(job.versions) + 1)))
        else:
            yield slice(0, len(job.requests))

    def _room(self, job: Job, shared_by_lanes: SharedByLanes) -> int:
        """How many tokens a group may share: half of the cache, or more if lanes' own tokens leave more.

        Own tokens are counted for every lane, and every request may end on a page of which it fills one slot.
        """
        capacity = self._cache.capacity
        if shared_by_lanes.sharing.tokens == "all":
            return capacity // 2
        own = sum(len(request.inputs) - request.active_from for request in job.requests)
        unfilled = len(job.requests) * (self._cache.page_size - 1)
        return max(capacity // 2, capacity - len(job.versions) * own - unfilled)

    def _group_or_again(self, job: Job) -> Result:
        """Score a group; if the cache is too full for the base lane, drop what that lane has kept, and try once more."""
        try:
            return self._group(job, keep=job.base_only)
        except CacheFullError:
            if not job.base_only:
                raise
            self.forget(job.versions)
            return self._group(job, keep=False)

    def _group(self, job: Job, *, keep: bool) -> Result:
        started, reused, report = self.passes.computed, dict[str, int](), PrefixReport()
        lanes, depth = len(job.versions), self._causal.depth
        with ExitStack() as stack:
            if job.shared_by_lanes is not None:
                shared = self.shared.of(job.requests, job.shared_by_lanes, stack)
                ran = self.passes.computed - started
                reused[job.shared_by_lanes.sharing.source] = max(
                    0, lanes * shared_work(shared.packed, job.shared_by_lanes) - ran
                )
                values = self._run_after(job, job.shared_by_lanes, shared)
            elif job.spans is not None:
                prepared = self._prepare(job, job.spans, stack)
                reused, report = dict(prepared.saved), prepared.report
                values = self._run_prepared(job, prepared)
            else:
                values = self._run_lanes(job, stack, keep=keep)
        computed, demand = self.passes.computed - started, depth * job.demand
        reused["shared_prefix"] = demand - computed - sum(reused.values())
        return Result(values, Work(demand, computed, reused), report)

    def _prepare(self, job: Job, spans: Spans, stack: ExitStack) -> Prepared:
        sequences = [request.inputs[:length] for request, length in zip(job.requests, job.prefixes, strict=True)]
        return self.prefixes.prepare(sequences, job.returning, job.versions, spans, job.running_of, stack)

    def _run_after(self, job: Job, shared_by_lanes: SharedByLanes, shared: SharedRows) -> list[list[Score]]:
        """What lanes share is in the cache: run the layers above it, or the tokens after it."""
        batch, reads = self._above(job, shared_by_lanes, shared)
        return self.passes.run(batch, job.running_of(job.versions), reads, job.observer)

    def _above(self, job: Job, shared_by_lanes: SharedByLanes, shared: SharedRows) -> tuple[Batch, Reads]:
        """The batch that is left to run where what lanes share is in the cache, and where answers are read in it."""
        if shared_by_lanes.sharing.tokens == "all":
            packed = pack([request.inputs for request in job.requests])
            paths = [packed.path_of[request.inputs] for request in job.requests]
            hidden = CachedRows(shared.slots[None], [shared_by_lanes.version])
            every, slots = np.ones(packed.rows, bool), _unkept(job, packed)
            batch = Batch(
                packed, job.versions, every, slots, shared_by_lanes.sharing.layers, self._causal.depth, hidden
            )
            return batch, job.reads(paths)
        lanes = len(job.versions)
        if shared_by_lanes.sharing.below:
            return self._upper(job, shared_by_lanes, shared)
        kept = CachedRows(np.tile(shared.slots, (lanes, 1)), [shared_by_lanes.version] * lanes)
        return self._rest(job, [request.active_from for request in job.requests], shared.packed, kept)

    def _upper(self, job: Job, shared_by_lanes: SharedByLanes, shared: SharedRows) -> tuple[Batch, Reads]:
        """In the cache are keys and values before the activation point, and the states after it that enter layer ``below``: run from there on."""
        packed, lanes = shared.packed, len(job.versions)
        paths = [packed.path_of[shared_tokens(request, shared_by_lanes)] for request in job.requests]
        before = before_activation(packed.tokens)
        slots = np.where(before, shared.slots, NOWHERE)[None].repeat(lanes, 0)
        states, marked = CachedRows(shared.slots[None], [shared_by_lanes.version]), [shared_by_lanes.version] * lanes
        batch = Batch(
            packed,
            job.versions,
            ~before,
            slots,
            shared_by_lanes.sharing.below,
            self._causal.depth,
            states,
            marked=marked,
        )
        return batch, job.reads(paths)

    def _run_prepared(self, job: Job, prepared: Prepared) -> list[list[Score]]:
        """Every lane's prefix is in the cache: run the tokens after it."""
        batch, reads = self._rest(job, job.prefixes, prepared.packed, prepared.kept)
        return self.passes.run(batch, job.running_of(job.versions), reads, job.observer)

    def _rest(self, job: Job, lengths: Sequence[int], prefix: Packed, kept: CachedRows) -> tuple[Batch, Reads]:
        """What follows the first ``lengths`` tokens of each request, whose keys and values are ``kept``."""
        requests = job.requests
        marked = [mark(request.inputs, length) for request, length in zip(requests, lengths, strict=True)]
        packed = pack(marked)
        paths = [packed.path_of[tokens] for tokens in marked]
        slots = _unkept(job, packed)
        for request, length, path in zip(requests, lengths, paths, strict=True):
            slots[:, path[:length]] = kept.slots[:, prefix.path_of[request.inputs[:length]]]
        fresh = ~before_activation(packed.tokens)
        return Batch(packed, job.versions, fresh, slots, 0, self._causal.depth, marked=kept.versions), job.reads(paths)

    def _lanes(self, job: Job) -> tuple[Batch, Reads]:
        """A batch of every token, for lanes that share nothing."""
        packed = pack([request.inputs for request in job.requests])
        paths = [packed.path_of[request.inputs] for request in job.requests]
        fresh, slots = np.ones(packed.rows, bool), _unkept(job, packed)
        return Batch(packed, job.versions, fresh, slots, 0, self._causal.depth), job.reads(paths)

    def _run_lanes(self, job: Job, stack: ExitStack, *, keep: bool) -> list[list[Score]]:
        batch, reads = self._lanes(job)
        if keep:
            return self._run_base(job, reads, batch, stack)
        return self.passes.run(batch, job.running_of(job.versions), reads, job.observer)

    def _run_base(self, job: Job, reads: Reads, batch: Batch, stack: ExitStack) -> list[list[Score]]:
        """The base lane lasts until the next update: prefixes that prompts share are kept for the calls until then."""
        version, (slots,) = batch.versions[0], batch.slots
        paths = [batch.packed.path_of[request.inputs] for request in job.requests]
        read = np.zeros(batch.packed.rows, bool)
        read[np.concatenate(reads.rows)] = True
        prompts = {
            request.prompt: path[: len(request.prompt)] for request, path in zip(job.requests, paths, strict=True)
        }
        for prompt, path in prompts.items():
            self.shared.lease(prompt, path, version, slots, stack)
        batch.fresh[:] = (slots == NOWHERE) | read
        count = np.zeros(batch.packed.rows, np.int64)
        for path in prompts.values():
            count[path] += 1
        keep = (count > 1) & (slots == NOWHERE) & ~read
        reservation = stack.enter_context(self._cache.reservation())
        if self._cache.capacity >= 4 * keep.sum():
            slots[keep] = reservation.take(version, int(keep.sum()))
        values = self.passes.run(batch, job.running_of(job.versions), reads, job.observer)
        for prompt, path in prompts.items():
            held = int(np.argmax(np.append(slots[path] == NOWHERE, True)))
            reservation.insert(version, prompt[:held], slots[path[:held]])
        return values


def _own_tokens(request: Request, shared_by_lanes: SharedByLanes | None) -> Tokens:
    """The tokens of a request that a lane runs on its own."""
    before = shared_by_lanes is not None and shared_by_lanes.sharing.tokens == "before_activation"
    return request.inputs[request.active_from :] if before else request.inputs


def _unkept(job: Job, packed: Packed) -> Rows:
    """Slots [lanes, R] of a pass that keeps nothing."""
    return np.full((len(job.versions), packed.rows), NOWHERE, np.int64)
