"""Read prompts that are to be continued: all but their last tokens, from which every lane goes on by itself."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from twinpass.cache.prefix_cache import Reservation
from twinpass.core import BASE, Prompt, Request, Tokens, WeightsVersion
from twinpass.engine.embedded.scoring.decoding import Line, Stage
from twinpass.engine.embedded.scoring.indices import NOWHERE, before_activation
from twinpass.engine.embedded.scoring.jobs import SharedByLanes
from twinpass.engine.embedded.scoring.packing import Rows, mark, pack
from twinpass.engine.embedded.scoring.passes import Batch, CachedRows, RunningOf, alone
from twinpass.engine.embedded.scoring.scorer import PackedScorer
from twinpass.engine.embedded.scoring.shared import SharedRows


@dataclass(frozen=True, slots=True)
class PromptReader:
    """Reads prompts under ``versions``, each lane's weights, into slots of ``reservation``; what is leased stays until ``stack`` closes."""

    scorer: PackedScorer
    versions: Sequence[WeightsVersion]
    running_of: RunningOf
    shared_by_lanes: SharedByLanes | None
    reservation: Reservation
    stack: ExitStack

    @property
    def keeps(self) -> bool:
        """Whether what is read outlasts the call as a prefix like any other: the base lane's is in force until the next update."""
        return self.shared_by_lanes is None and [version.lane for version in self.versions] == [BASE]

    @property
    def cut(self) -> int:
        """Lanes have the same keys and values in all layers below this one; 0: in none."""
        if self.shared_by_lanes is None:
            return 0
        return (
            self.shared_by_lanes.sharing.layers
            if self.shared_by_lanes.sharing.tokens == "all"
            else self.shared_by_lanes.sharing.below
        )

    @property
    def stages(self) -> list[Stage]:
        """The layers that all lanes share, if there are any, then those that each lane runs by itself."""
        depth = self.scorer.passes.causal.depth
        upper = Stage(self.cut, depth, self.versions)
        if self.shared_by_lanes is None or not self.cut:
            return [upper]
        return [Stage(0, self.cut, [self.shared_by_lanes.version] * len(self.versions)), upper]

    def read(self, prompts: Sequence[Prompt], room: int) -> tuple[list[list[Line]], dict[str, int]]:
        """A line a lane and distinct prompt, with ``room`` for so many more tokens; token-layers saved, by source."""
        heirs: dict[Prompt, list[int]] = {}
        for i, prompt in enumerate(prompts):
            heirs.setdefault(Prompt(prompt.tokens, prompt.active_from), []).append(i)
        slots, counts, saved = self._slots(list(heirs))
        lanes = [
            self._lines(heirs, [stage[lane] for stage in slots], counts, room, lane)
            for lane in range(len(self.versions))
        ]
        return lanes, saved

    def _slots(self, prompts: Sequence[Prompt]) -> tuple[list[list[list[Rows]]], list[list[int]], dict[str, int]]:
        """Slots by stage, lane and prompt; by stage and prompt, how many of the first all lanes share; what was saved."""
        none = [0] * len(prompts)
        if self.shared_by_lanes is None:
            return [self._read_lanes([prompt.tokens[:-1] for prompt in prompts])], [none], {}
        passes, started = self.scorer.passes, self.scorer.passes.computed
        before = self.shared_by_lanes.sharing.tokens == "before_activation"
        if self.shared_by_lanes.sharing.below:
            lower, upper, rows = self._read_both(prompts, self.shared_by_lanes)
            counts = [
                [len(prompt.tokens) - 1 for prompt in prompts],
                [prompt.active_from for prompt in prompts] if before else none,
            ]
            return [lower, upper], counts, {self.shared_by_lanes.sharing.source: rows}
        requests = [
            Request(prompt.tokens if before else prompt.tokens[:-1], (0,), prompt.active_from) for prompt in prompts
        ]
        shared = self.scorer.shared.of(requests, self.shared_by_lanes, self.stack)
        rows = len(self.versions) * shared.packed.rows * self.shared_by_lanes.sharing.layers
        saved = {self.shared_by_lanes.sharing.source: rows - (passes.computed - started)}
        if before:
            slots = self._read_after(prompts, shared, self.shared_by_lanes)
            return [slots], [[prompt.active_from for prompt in prompts]], saved
        lower, upper = self._read_above(prompts, shared, self.shared_by_lanes)
        return [lower, upper], [[len(prompt.tokens) - 1 for prompt in prompts], none], saved

    def take(self, stages: Sequence[Stage], lanes: Sequence[Sequence[Line]]) -> None:
        """Reserve a slot for every line's next token."""
        for number, stage in enumerate(stages):
            for version, lines in zip(stage.versions, lanes, strict=True):
                for line, slot in zip(lines, self.reservation.take(version, len(lines)), strict=True):
                    line.slots[number, line.length] = slot

    def keep(self, line: Line, tokens: Tokens) -> None:
        """Let the tree hold what a line has read, all of ``tokens``."""
        self.reservation.insert(self.versions[line.lane], tokens, line.slots[0, : len(tokens)])

    def _read_lanes(self, sequences: Sequence[Tokens]) -> list[list[Rows]]:
        """Read every token under every lane: slots by lane and prompt. Lanes share nothing."""
        packed = pack(sequences)
        slots = np.full((len(self.versions), packed.rows), NOWHERE, np.int64)
        paths = {tokens: packed.path_of[tokens] for tokens in sequences if tokens}
        if self.keeps:
            self._lease(paths, slots[0])
        fresh = slots[0] == NOWHERE
        for lane, version in enumerate(self.versions):
            slots[lane, fresh] = self.reservation.take(version, int(fresh.sum()))
        batch = Batch(packed, self.versions, fresh, slots, 0, self.scorer.passes.causal.depth)
        self.scorer.passes.run(batch, self.running_of(self.versions))
        if self.keeps:
            for tokens, path in paths.items():
                self.reservation.insert(self.versions[0], tokens, slots[0, path])
            self._lease(paths, slots[0])
        return [[own[packed.path_of[tokens]] for tokens in sequences] for own in slots]

    def _lease(self, paths: dict[Tokens, Rows], slots: Rows) -> None:
        for tokens, path in paths.items():
            self.scorer.shared.lease(tokens, path, self.versions[0], slots, self.stack)

    def _read_after(
        self, prompts: Sequence[Prompt], shared: SharedRows, shared_by_lanes: SharedByLanes
    ) -> list[list[Rows]]:
        """Read what follows the activation point, under every lane; what is before it is in the cache. Slots by lane and prompt."""
        marked = [mark(prompt.tokens[:-1], prompt.active_from) for prompt in prompts]
        packed = pack(marked)
        slots = np.full((len(self.versions), packed.rows), NOWHERE, np.int64)
        for prompt, tokens in zip(prompts, marked, strict=True):
            head = prompt.tokens[: prompt.active_from]
            slots[:, packed.path_of[tokens][: len(head)]] = shared.slots[shared.packed.path_of[head]]
        fresh = ~before_activation(packed.tokens)
        for lane, version in enumerate(self.versions):
            slots[lane, fresh] = self.reservation.take(version, int(fresh.sum()))
        kept = [shared_by_lanes.version] * len(self.versions)
        batch = Batch(packed, self.versions, fresh, slots, 0, self.scorer.passes.causal.depth, marked=kept)
        self.scorer.passes.run(batch, self.running_of(self.versions))
        return [[own[packed.path_of[tokens]] for tokens in marked] for own in slots]

    def _read_above(
        self, prompts: Sequence[Prompt], shared: SharedRows, shared_by_lanes: SharedByLanes
    ) -> tuple[list[list[Rows]], list[list[Rows]]]:
        """Run the upper layers of every token; the states that enter them are in the cache. Slots of lower and of upper layers, by lane and prompt."""
        packed, lanes = shared.packed, len(self.versions)
        slots = np.stack([self.reservation.take(version, packed.rows) for version in self.versions])
        hidden = CachedRows(shared.slots[None], [shared_by_lanes.version])
        first, last = shared_by_lanes.sharing.layers, self.scorer.passes.causal.depth
        batch = Batch(packed, self.versions, np.ones(packed.rows, bool), slots, first, last, hidden)
        self.scorer.passes.run(batch, self.running_of(self.versions))
        paths = [packed.path_of[prompt.tokens[:-1]] for prompt in prompts]
        return [[shared.slots[path] for path in paths]] * lanes, [[own[path] for path in paths] for own in slots]

    def _read_both(
        self, prompts: Sequence[Prompt], shared_by_lanes: SharedByLanes
    ) -> tuple[list[list[Rows]], list[list[Rows]], int]:
        """Lanes share the lower layers of all tokens, and every layer of those before the activation point, if there is one.

        Slots of lower and of upper layers, by lane and prompt; how many token-layers that saved.
        """
        activated = shared_by_lanes.sharing.tokens == "before_activation"
        marked = [mark(prompt.tokens[:-1], prompt.active_from if activated else 0) for prompt in prompts]
        packed, lanes, shared = pack(marked), len(self.versions), shared_by_lanes.version
        below, depth, passes = shared_by_lanes.sharing.below, self.scorer.passes.causal.depth, self.scorer.passes
        low = self.reservation.take(shared, packed.rows)
        states, before = CachedRows(low[None], [shared]), before_activation(packed.tokens)
        passes.run(Batch(packed, [shared], np.ones(packed.rows, bool), low[None].copy(), 0, below), alone)
        slots = np.full((lanes, packed.rows), NOWHERE, np.int64)
        slots[:, before] = self.reservation.take(shared, int(before.sum()))
        passes.run(Batch(packed, [shared], before, np.where(before, slots[:1], NOWHERE), below, depth, states), alone)
        for lane, version in enumerate(self.versions):
            slots[lane, ~before] = self.reservation.take(version, int((~before).sum()))
        batch = Batch(packed, self.versions, ~before, slots, below, depth, states, marked=[shared] * lanes)
        passes.run(batch, self.running_of(self.versions))
        paths = [packed.path_of[tokens] for tokens in marked]
        saved = (lanes - 1) * (packed.rows * below + int(before.sum()) * (depth - below))
        return [[low[path] for path in paths]] * lanes, [[own[path] for path in paths] for own in slots], saved

    def _lines(
        self,
        heirs: Mapping[Prompt, Sequence[int]],
        slots: Sequence[Sequence[Rows]],
        counts: Sequence[Sequence[int]],
        room: int,
        lane: int,
    ) -> list[Line]:
        """The lines of a lane, from slots by stage and prompt."""
        lines = []
        for index, (prompt, own) in enumerate(heirs.items()):
            length = len(prompt.tokens) - 1
            places = np.full((len(slots), length + room), NOWHERE, np.int64)
            places[:, :length] = [stage[index] for stage in slots]
            shared = [stage[index] for stage in counts]
            kin = [index if count else (lane + 1) * len(heirs) + index for count in shared]
            alike = [count or length + 1 for count in shared]
            lines.append(Line(lane, prompt.tokens[-1], tuple(own), places, length, kin, alike))
        return lines
