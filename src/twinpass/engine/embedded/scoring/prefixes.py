"""Prefixes whose keys and values lanes do not all compute: reused from the base lane, reflected about it, carried.

lane         layers below the cut         from the cut on
base         computed, or carried         only if asked for
own          computed                     computed
reflected    2 base - opposite sign       computed, from the reflected state that enters the cut
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from twinpass.cache.prefix_cache import Reservation
from twinpass.core import Lane, PrefixReport, Request, Tokens, WeightsVersion
from twinpass.engine.embedded.scoring.carry import Carry, Direction
from twinpass.engine.embedded.scoring.indices import NOWHERE
from twinpass.engine.embedded.scoring.packing import Packed, Rows, common_length, pack
from twinpass.engine.embedded.scoring.passes import Batch, CachedRows, Passes, RunningOf
from twinpass.phases import phase
from twinpass.reuse.plan import Spans

UNMOVED = 8 * float(np.finfo(np.float32).eps)
"""Keys and values that moved by less, relative to their size, did not: what is left is rounding."""

HOPELESS = 1e9
"""What stands for an error that is not a finite number."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Every lane's prefix, ready to be read.

    Args:
        packed: the prefixes' trie, of R rows.
        kept: where each lane finds them.
        saved: token-layers that did not run, by source.
    """

    packed: Packed
    kept: CachedRows
    saved: Mapping[str, int]
    report: PrefixReport


def prefix_lengths(requests: Sequence[Request], spans: Spans) -> tuple[list[int], int]:
    """How many tokens of each request are prefix, and how many of those all requests share.

    A prompt's prefix ends where its suffix begins (``active_from``), before its last token at the latest.
    """
    prompts = [min(request.active_from, len(request.prompt) - 1) for request in requests]
    first = requests[0].inputs[: min(prompts)]
    shared = min(common_length(first, request.inputs[: len(first)]) for request in requests)
    return (prompts if spans.tokens == "prompt" else [shared] * len(requests)), shared


class Prefixes:
    """Prepares prefixes, and keeps what is carried between steps.

    Args:
        passes: runs batches.
    """

    def __init__(self, passes: Passes) -> None:
        self._passes, self._cache, self._pool = passes, passes.cache, passes.pool
        self._depth = passes.causal.depth
        self.carry: Carry | None = None

    @property
    def retained(self) -> set[WeightsVersion]:
        """Versions of what is carried, and of lanes that the next update may still need."""
        carry = self.carry
        return set() if carry is None else {carry.version, *(direction.version for direction in carry.directions)}

    def drop(self) -> None:
        """Carry nothing on."""
        if self.carry is not None:
            self.carry.close()
            self.carry = None

    def prepare(
        self,
        sequences: Sequence[Tokens],
        shared: int,
        versions: Sequence[WeightsVersion],
        spans: Spans,
        running_of: RunningOf,
        stack: ExitStack,
    ) -> Prepared:
        """Make the keys and values [tokens of the trie, a slot each] of every lane's prefix: computed, carried, the base lane's, or reflected.

        Args:
            sequences: the prefix of each request.
            shared: their first tokens, which all have in common and which may be carried.
            versions: the lanes.
            stack: until it closes the slots stay.

        Raises:
            ValueError: a reflected lane comes without the one of the opposite sign.
        """
        packed = pack(sequences)
        group = _LaneRoles(packed, versions, spans, self._depth)
        slots = np.full((len(versions), packed.rows), NOWHERE, np.int64)
        if not packed.rows:
            return Prepared(packed, CachedRows(slots, tuple(versions)), {}, PrefixReport())
        started = self._passes.computed
        stack.callback(self._forget_base, group.base_version)
        reservation = stack.enter_context(self._cache.reservation())
        base, old, carried_rows = self._base(group, sequences[0][:shared], running_of, reservation)
        if group.own:
            own = [versions[i] for i in group.own]
            slots[group.own] = [reservation.take(version, packed.rows) for version in own]
            self._run(group, own, slots[group.own], np.ones(packed.rows, bool), self._depth, running_of)
        slots[group.base] = base
        self._reflect(group, base, slots, running_of, reservation)
        errors, drift = self._errors(group, base, slots)
        report = PrefixReport(
            accepted=len(group.opposite) * packed.rows * group.cut,
            rejected=len(group.opposite) * packed.rows * (self._depth - group.cut),
            errors=errors,
            drift=drift,
        )
        if self.carry is not None and spans.base != "compute":
            report = replace(report, age=self.carry.age, carried=self._carried_error(group, old, base, slots))
            self._retain(group, slots, reservation)
        if old is not None:
            old.close(replaced=old.version == group.base_version)
        ran = self._passes.computed - started
        variants = len({version.lane.exact for version in versions})
        every = packed.rows * self._depth
        saved = {"transported": carried_rows * group.base_depth, "measured": -every * group.measuring}
        saved["reflected" if group.opposite else "frozen"] = variants * every - ran - sum(saved.values())
        kept = CachedRows(slots, [group.base_version if i in group.base else versions[i] for i in range(len(versions))])
        return Prepared(packed, kept, {source: count for source, count in saved.items() if count}, report)

    def _forget_base(self, version: WeightsVersion) -> None:
        if version not in self.retained:
            self._cache.invalidate(version)

    def _base(
        self, group: "_LaneRoles", shared: Tokens, running_of: RunningOf, reservation: Reservation
    ) -> tuple[Rows, Carry | None, int]:
        """The base lane's slots [R]; what was carried before, if it was replaced; how many rows were carried."""
        slots = np.full(group.packed.rows, NOWHERE, np.int64)
        if not group.needs_base:
            return slots, None, 0
        old, kept = self.carry, 0
        if old is not None:
            old.drop_directions()
            usable = common_length(old.tokens, shared)
            if group.spans.base == "carried" and old.version == group.base_version and old.cut == group.cut:
                kept = usable if 2 * usable > len(shared) else 0
        if kept and old is not None:
            old.shorten(kept)
            slots[:kept] = old.slots
        fresh = slots == NOWHERE
        slots[fresh] = reservation.take(group.base_version, int(fresh.sum()))
        replaced = None
        if group.spans.base != "compute" and not kept and shared:
            replaced, own = old, slots[: len(shared)].copy()
            self.carry = Carry(self._cache, self._pool, shared, own, group.base_version, group.cut)
            self.carry.adopt(own, reservation)
            group.base_depth = self._depth
        self._run(group, [group.base_version], slots[None], fresh, group.base_depth, running_of)
        return slots, replaced, kept

    def _run(
        self,
        group: "_LaneRoles",
        versions: Sequence[WeightsVersion],
        slots: Rows,
        fresh: NDArray[np.bool_],
        last: int,
        running_of: RunningOf,
        first: int = 0,
    ) -> None:
        """Run layers ``first`` to ``last`` - 1, stopping at the cut so that the states that enter it are kept."""
        stops = [stop for stop in (group.cut if group.graded else last, last) if stop > first]
        for stop in sorted(set(stops)):
            hidden = CachedRows(slots, versions) if first else None
            batch = Batch(group.packed, versions, fresh, slots, first, stop, hidden)
            self._passes.run(batch, running_of(versions))
            first = stop

    @phase("cache")
    def _reflect(
        self, group: "_LaneRoles", base: Rows, slots: Rows, running_of: RunningOf, reservation: Reservation
    ) -> None:
        if not group.opposite:
            return
        about = torch.from_numpy(base)
        for lane, opposite in group.opposite.items():
            slots[lane] = reservation.take(group.versions[lane], group.packed.rows)
            terms = [(2.0, about), (-1.0, torch.from_numpy(slots[opposite]))]
            self._pool.combine(torch.from_numpy(slots[lane]), terms, range(group.cut), hidden=group.graded)
        if group.cut < self._depth:
            lanes = list(group.opposite)
            versions = [group.versions[lane] for lane in lanes]
            every = np.ones(group.packed.rows, bool)
            self._run(group, versions, slots[lanes], every, self._depth, running_of, first=group.cut)

    def _errors(self, group: "_LaneRoles", base: Rows, slots: Rows) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Two numbers a layer, where exact twins run beside reflected lanes; the larger of keys' and values'.

        First ``|reflected - exact| / |exact - base|``, how wrong reflections are; then ``|exact - base| / |base|``, how far lanes are apart.
        """
        about, at = torch.from_numpy(base), torch.from_numpy(slots)
        errors, drift = [], []
        for layer in range(self._depth) if group.twins else ():
            off, moved = np.zeros(2), np.zeros(2)
            for lane, twin in group.twins.items():
                opposite = at[group.opposite[lane]]
                off += np.square(self._pool.distance([(2.0, about), (-1.0, opposite), (-1.0, at[twin])], layer))
                moved += np.square(self._pool.distance([(1.0, at[twin]), (-1.0, about)], layer))
            size = np.square(self._pool.distance([(1.0, about)], layer)) * len(group.twins)
            errors.append(_ratio(off, moved, size))
            drift.append(_ratio(moved, size, size))
        return tuple(errors), tuple(drift)

    def _carried_error(self, group: "_LaneRoles", old: Carry | None, base: Rows, slots: Rows) -> float | None:
        """``|carried - computed| / |plus lane - computed|`` of the base lane's keys and values, in the worst layer; None: nothing to compare."""
        if old is None or not old.age or old.version != group.base_version or not group.plus:
            return None
        count = common_length(old.tokens, self.carry.tokens if self.carry else ())
        if not count:
            return None
        new, was = torch.from_numpy(base[:count]), torch.from_numpy(old.slots[:count])
        plus = torch.from_numpy(slots[group.plus[0], :count])
        ratios = []
        for layer in range(self._depth):
            off, moved, size = (
                np.square(self._pool.distance(terms, layer))
                for terms in ([(1.0, was), (-1.0, new)], [(1.0, plus), (-1.0, new)], [(1.0, new)])
            )
            ratios.append(_ratio(off, moved, size))
        return max(ratios)

    def _retain(self, group: "_LaneRoles", slots: Rows, reservation: Reservation) -> None:
        """Keep the plus lanes' keys and values of what is carried until the next update."""
        carry = self.carry
        assert carry is not None
        for lane in group.directions:
            own = slots[lane, : len(carry.tokens)].copy()
            carry.adopt(own, reservation)
            carry.directions.append(Direction(group.versions[lane], own))


class _LaneRoles:
    """What each lane does, by its index among the lanes; the rows of what may be carried are the first of the trie.

    ``own`` lanes compute their prefix, ``base`` lanes read the base lane's. A reflected lane i is made of the base lane and ``opposite[i]``;
    ``twins[i]`` is its exact version, if that runs. ``directions``: one plus lane a probe, along which updates are carried.
    """

    def __init__(self, packed: Packed, versions: Sequence[WeightsVersion], spans: Spans, depth: int) -> None:
        self.packed, self.versions, self.spans = packed, versions, spans
        lanes = [version.lane for version in versions]
        place = {lane: i for i, lane in enumerate(lanes)}
        self.own = [i for i, lane in enumerate(lanes) if lane.prefix == "own"]
        self.plus = [i for i in self.own if lanes[i].sign > 0]
        self.base = [i for i, lane in enumerate(lanes) if lane.prefix == "base"]
        reflected = [i for i, lane in enumerate(lanes) if lane.prefix == "reflected"]
        self.opposite: dict[int, int] = {}
        for i in reflected:
            opposite = Lane(lanes[i].probe, -lanes[i].sign, lanes[i].eps)
            if opposite not in place:
                raise ValueError(f"{lanes[i]} is reflected, but {opposite} is not scored beside it")
            self.opposite[i] = place[opposite]
        self.twins = {i: place[lanes[i].exact] for i in reflected if lanes[i].exact in place}
        self.base_version = replace(versions[0], lane=Lane(prefix="base"))
        self.cut = min(spans.layers, depth)
        self.graded = bool(reflected) and 0 < self.cut < depth
        # one lane a probe, though others may try it at other eps: what is reflected about, or the nearest to the derivative
        order = sorted(self.plus, key=lambda i: (i not in self.opposite.values(), lanes[i].eps))
        self.directions = list({lanes[i].probe: i for i in reversed(order)}.values())
        approximate = {lane.exact for lane in lanes if lane.prefix != "own"}
        self.measuring = sum(lanes[i] in approximate for i in self.own)
        self.needs_base = bool(self.base or reflected)
        self.base_depth = depth if self.base or self.twins else self.cut


def _ratio(off: NDArray[np.float64], moved: NDArray[np.float64], size: NDArray[np.float64]) -> float:
    """The larger of keys' and values' relative errors, from squared norms; what did not move has none."""
    still = moved <= UNMOVED**2 * size
    ratio = np.sqrt(np.where(still, 0.0, off / np.where(still, 1.0, moved)).max())
    return float(np.nan_to_num(ratio, nan=HOPELESS, posinf=HOPELESS))
