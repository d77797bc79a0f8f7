"""Write texts: prompts are read once, then all lanes' continuations grow together, token by token."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np

from twinpass.core import BASE, Continuation, Decode, Prompt, Sampling, WeightsVersion, Work
from twinpass.engine.embedded.scoring.choosing import choose
from twinpass.engine.embedded.scoring.decoding import Line, advance
from twinpass.engine.embedded.scoring.jobs import SharedByLanes
from twinpass.engine.embedded.scoring.passes import RunningOf
from twinpass.engine.embedded.scoring.reading import PromptReader
from twinpass.engine.embedded.scoring.scorer import PackedScorer
from twinpass.errors import CacheFullError

FULL = 0.75
"""The share of the cache that one group's texts may take; the rest is for what they find there."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to write: continuations of ``prompts`` under ``versions``, each lane's weights, which ``running_of`` makes the model compute."""

    prompts: Sequence[Prompt]
    versions: Sequence[WeightsVersion]
    running_of: RunningOf
    sampling: Sampling
    decode: Decode
    shared_by_lanes: SharedByLanes | None = None


@dataclass(slots=True)
class Growing:
    """A continuation so far."""

    prompt: Prompt
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str | None = None

    def add(self, token: int, logprob: float, sampling: Sampling, decode: Decode) -> bool:
        """Take in one more token; returns whether the text goes on."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        stopped = token in sampling.stop_tokens
        if stopped or sampling.stop:
            text = decode(tuple(self.tokens[:-1] if stopped else self.tokens))
            ends = [text.index(stop) for stop in sampling.stop if stop in text]
            self.text = text[: min(ends)] if ends else text if stopped else None
        return self.text is None and len(self.tokens) < sampling.max_tokens

    def finished(self, decode: Decode) -> Continuation:
        """What came of it."""
        text = decode(tuple(self.tokens)) if self.text is None else self.text
        return Continuation(tuple(self.tokens), np.array(self.logprobs, np.float64), text, self.text is not None)


class PackedWriter:
    """Writes texts with a scorer's cache and passes."""

    def __init__(self, scorer: PackedScorer) -> None:
        self._scorer, self._passes, self._cache = scorer, scorer.passes, scorer.passes.cache
        self._depth = scorer.passes.causal.depth

    def write(self, order: Order) -> tuple[list[list[Continuation]], Work]:
        """``[lane][prompt]`` continuations, and the work they took.

        Raises:
            CacheFullError: the cache's budget is too small for one prompt and its continuation.
        """
        values: list[list[Continuation]] = [[] for _ in order.versions]
        work = Work()
        try:
            for part in self._groups(order):
                found, took = self._group_or_again(replace(order, prompts=order.prompts[part]))
                for lane, own in zip(values, found, strict=True):
                    lane.extend(own)
                work += took
        except CacheFullError as error:
            size, lanes = self._scorer.slot_bytes, len(order.versions)
            longest = max(len(prompt.tokens) for prompt in order.prompts) + order.sampling.max_tokens
            raise CacheFullError(
                f"{error}; texts of {longest} tokens, their prompts included, under {lanes} lanes need about "
                f"{2 * lanes * longest * size} bytes, and reuse.budget is {self._cache.capacity * size}: raise it, or lower max_tokens"
            ) from error
        finally:
            self._scorer.forget([version for version in order.versions if version.lane != BASE])
            if order.shared_by_lanes is not None and not order.shared_by_lanes.sharing.kept:
                self._scorer.forget([order.shared_by_lanes.version])
        return values, work

    def _groups(self, order: Order) -> Iterator[slice]:
        """So many prompts at a time as the cache has room for, with all that may be written."""
        start, taken, lanes = 0, 0, len(order.versions)
        for index, prompt in enumerate(order.prompts):
            sharing = None if order.shared_by_lanes is None else order.shared_by_lanes.sharing
            before = sharing is not None and sharing.tokens == "before_activation"
            shared = prompt.active_from if before else 0
            stages = 2 if sharing is not None and (not before or sharing.below) else 1
            need = stages * (shared + lanes * (len(prompt.tokens) + order.sampling.max_tokens - shared))
            if index > start and taken + need > FULL * self._cache.capacity:
                yield slice(start, index)
                start, taken = index, 0
            taken += need
        if order.prompts:
            yield slice(start, len(order.prompts))

    def _group_or_again(self, order: Order) -> tuple[list[list[Continuation]], Work]:
        """Write for a group; if the cache is too full for the base lane, drop what that lane has kept, and try once more."""
        try:
            return self._group(order)
        except CacheFullError:
            if [version.lane for version in order.versions] != [BASE]:
                raise
            self._scorer.forget(order.versions)
            return self._group(order)

    def _group(self, order: Order) -> tuple[list[list[Continuation]], Work]:
        started = self._passes.computed
        with ExitStack() as stack:
            reservation = stack.enter_context(self._cache.reservation())
            reader = PromptReader(
                self._scorer, order.versions, order.running_of, order.shared_by_lanes, reservation, stack
            )
            firsts, reused = reader.read(order.prompts, order.sampling.max_tokens)
            lanes, idle = self._grow(order, reader, firsts)
        if idle:
            reused["idle"] = -idle * self._depth
        computed = self._passes.computed - started
        demand = self._depth * sum(len(one.prompt.tokens) + len(one.tokens) - 1 for lane in lanes for one in lane)
        reused["shared_prefix"] = demand - computed - sum(reused.values())
        return [[one.finished(order.decode) for one in lane] for lane in lanes], Work(demand, computed, reused)

    def _grow(self, order: Order, reader: PromptReader, lanes: list[list[Line]]) -> tuple[list[list[Growing]], int]:
        """Decode all lines to their ends; ``[lane][prompt]``, and the rows that only filled up lanes with fewer than others."""
        grown = [[Growing(prompt) for prompt in order.prompts] for _ in order.versions]
        stages, running, idle = reader.stages, order.running_of(order.versions), 0
        while any(lanes):
            reader.take(stages, lanes)
            idle += sum(max(map(len, lanes)) - len(lines) for lines in lanes)
            following: list[list[Line]] = [[] for _ in lanes]
            for lines, logits in advance(self._passes, stages, running, lanes):
                heirs = [(row, line, heir) for row, line in enumerate(lines) for heir in line.heirs]
                own = logits[[row for row, _, _ in heirs]] if len(heirs) > len(lines) else logits
                prompts = [order.prompts[heir] for _, _, heir in heirs]
                done = [len(grown[line.lane][heir].tokens) for _, line, heir in heirs]
                tokens, logprobs = choose(own, prompts, done, order.sampling)
                for (_, line, heir), token, logprob in zip(heirs, tokens.tolist(), logprobs.tolist(), strict=True):
                    one = grown[line.lane][heir]
                    if one.add(token, logprob, order.sampling, order.decode):
                        following[line.lane].append(line.followed(token, heir))
                    elif reader.keeps:
                        reader.keep(line, (*one.prompt.tokens, *one.tokens[:-1]))
            lanes = following
        return grown, idle
