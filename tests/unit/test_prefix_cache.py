"""The prefix cache, in any order of calls, against a dictionary of prefixes."""

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from cache_model import (
    PAGE_SIZES,
    VERSIONS,
    Content,
    Model,
    Text,
    array,
    cuts,
    first_texts,
    machine_test,
    shortened,
    spell,
    texts,
    versions,
)
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from tiers import some_fast

from twinpass.cache.prefix_cache import PrefixCache, Reservation
from twinpass.core import Tokens
from twinpass.errors import CacheFullError, StaleKVError


@dataclass(eq=False)
class Lease:
    """A lease that is open, and what its slots held as it began."""

    version: str
    tokens: Tokens
    stack: ExitStack
    slots: list[int]
    content: list[Content]


@dataclass(eq=False)
class Reserved:
    """A reservation and the slots that should be in it."""

    stack: ExitStack
    reservation: Reservation
    slots: set[int] = field(default_factory=set)
    open: bool = True


@dataclass(eq=False)
class Plan:
    """A sequence all of whose keys and values were in these slots once."""

    reserved: Reserved
    version: str
    tokens: Tokens
    slots: list[int]


class CacheMachine(RuleBasedStateMachine):
    """The cache; ``content`` says which prefix of which version, and of which life of it, each taken slot holds."""

    leases = Bundle[Lease]("leases")
    reservations = Bundle[Reserved]("reservations")
    plans = Bundle[Plan]("plans")
    known = Bundle[Text]("known")

    def __init__(self, page_size: int) -> None:
        super().__init__()
        self.page_size, self.capacity = page_size, 8 * page_size + 2
        self.cache, self.model = PrefixCache(self.capacity, page_size), Model(page_size)
        self.content: dict[int, Content] = {}
        self.lives: Counter[str] = Counter()
        self.open_leases: list[Lease] = []
        self.open_reservations: list[Reserved] = []

    def prefixes(self, version: str, tokens: Tokens) -> list[Content]:
        return [(version, self.lives[version], tokens[:n]) for n in range(1, len(tokens) + 1)]

    def forget(self, slots: set[int]) -> None:
        for slot in slots:
            del self.content[slot]

    def look_up(self, version: str, tokens: Tokens) -> Lease:
        stack = ExitStack()
        slots = stack.enter_context(self.cache.lease(version, tokens)).tolist()
        content = [self.content[slot] for slot in slots]
        assert content == self.prefixes(version, tokens)[: len(slots)]
        assert slots == self.model.match(version, tokens)
        self.model.pins.update(slots)
        self.open_leases.append(Lease(version, tokens, stack, slots, content))
        return self.open_leases[-1]

    def let_go(self, lease: Lease) -> None:
        lease.stack.close()
        self.open_leases.remove(lease)
        self.forget(self.model.release(lease.slots))

    def begin(self) -> Reserved:
        stack = ExitStack()
        self.open_reservations.append(Reserved(stack, stack.enter_context(self.cache.reservation())))
        return self.open_reservations[-1]

    def end(self, reserved: Reserved) -> None:
        reserved.stack.close()
        reserved.open = False
        self.open_reservations.remove(reserved)
        self.forget(reserved.slots)

    def fresh(self, version: str) -> set[int]:
        life = (version, self.lives[version])
        return {slot for slot, content in self.content.items() if content[:2] == life}

    def compute(self, reserved: Reserved, version: str, text: Text) -> Plan | None:
        """Take what is not held or reserved here already of a sequence, and write it; None if there is no room."""
        tokens = spell(text, self.page_size)
        lease = self.look_up(version, tokens)
        here = {self.content[slot]: slot for slot in reserved.slots}
        here |= dict(zip(lease.content, lease.slots, strict=True))
        prefixes = self.prefixes(version, tokens)
        taken = self.take(reserved, version, [prefix for prefix in prefixes if prefix not in here])
        self.let_go(lease)
        if taken is None:
            return None
        return Plan(reserved, version, tokens, [(here | taken)[prefix] for prefix in prefixes])

    def take(self, reserved: Reserved, version: str, missing: list[Content]) -> dict[Content, int] | None:
        count, free, evicted = len(missing), self.capacity - len(self.content), self.cache.evicted
        if count > free + self.model.room:
            with pytest.raises(CacheFullError, match=f"{count} more tokens do not fit: {free + self.model.room} of"):
                reserved.reservation.take(version, count)
            assert self.cache.evicted == evicted
            return None
        slots = reserved.reservation.take(version, count).tolist()
        total = self.cache.evicted - evicted
        assert total == 0 or count > free
        if count > free:
            self.forget(self.model.evict(count - free, total))
        assert len(set(slots)) == count
        assert self.content.keys().isdisjoint(slots)
        reserved.slots.update(slots)
        taken = dict(zip(missing, slots, strict=True))
        self.content.update({slot: prefix for prefix, slot in taken.items()})
        return taken

    def insert(self, plan: Plan) -> None:
        """A slot that lost its place to the same version is for leases to prevent, no check can tell."""
        slots = array(plan.slots)
        if not self.fresh(plan.version).issuperset(plan.slots):
            with pytest.raises(StaleKVError):
                plan.reserved.reservation.insert(plan.version, plan.tokens, slots)
            return
        intact = [self.content[slot] for slot in plan.slots] == self.prefixes(plan.version, plan.tokens)
        if intact and (self.model.owned | plan.reserved.slots).issuperset(plan.slots):
            plan.reserved.reservation.insert(plan.version, plan.tokens, slots)
            plan.reserved.slots.difference_update(self.model.insert(plan.version, plan.tokens, plan.slots))

    def put(self, version: str, text: Text) -> None:
        reserved = self.begin()
        plan = self.compute(reserved, version, text)
        if plan is not None:
            self.insert(plan)
        self.end(reserved)

    @initialize(target=known, texts=first_texts)
    def fill(self, texts: list[Text]) -> MultipleResults[Text]:
        for text in texts:
            self.put("a", text)
        return multiple(*texts)

    @rule(target=known, version=versions, text=texts)
    def hold(self, version: str, text: Text) -> Text:
        self.put(version, text)
        return text

    @rule(target=leases, version=versions, text=known | texts)
    def lease(self, version: str, text: Text) -> Lease:
        return self.look_up(version, spell(text, self.page_size))

    @rule(target=leases, lease=leases, cut=cuts)
    def lease_inside(self, lease: Lease, cut: int) -> Lease:
        return self.look_up(lease.version, shortened(lease.tokens, cut))

    @rule(lease=consumes(leases))
    def release(self, lease: Lease) -> None:
        self.let_go(lease)

    @rule(target=reservations)
    def reserve(self) -> Reserved:
        return self.begin()

    @rule(reserved=consumes(reservations))
    def close(self, reserved: Reserved) -> None:
        self.end(reserved)

    @rule(target=plans, reserved=reservations, version=versions, text=texts)
    def plan(self, reserved: Reserved, version: str, text: Text) -> Plan | MultipleResults[Plan]:
        return self.compute(reserved, version, text) or multiple()

    @rule(plan=plans)
    def insert_plan(self, plan: Plan) -> None:
        if plan.reserved.open:
            self.insert(plan)

    @rule(reserved=reservations, step=st.integers(1, 3))
    def drop(self, reserved: Reserved, step: int) -> None:
        slots = set(sorted(reserved.slots)[::step])
        reserved.reservation.drop(array(slots))
        reserved.slots -= slots
        self.forget(slots)

    @rule(version=leases.map(lambda lease: lease.version))
    def invalidate(self, version: str) -> None:
        self.cache.invalidate(version)
        self.lives[version] += 1
        self.forget(self.model.invalidate(version))

    @invariant()
    def each_slot_has_one_owner(self) -> None:
        owners = [self.model.owned, *(reserved.slots for reserved in self.open_reservations)]
        assert sorted(slot for slots in owners for slot in slots) == sorted(self.content)
        assert (self.cache.held, self.cache.free) == (len(self.model.owned), self.capacity - len(self.content))
        assert all(reserved.slots == reserved.reservation.slots for reserved in self.open_reservations)

    @invariant()
    def what_is_leased_stays(self) -> None:
        for lease in self.open_leases:
            assert [self.content.get(slot) for slot in lease.slots] == lease.content

    @invariant()
    def check_knows_every_slot(self) -> None:
        for version in VERSIONS:
            fresh = self.fresh(version)
            self.cache.check(version, array(fresh))
            others = set(range(self.capacity)) - fresh
            if others:
                with pytest.raises(StaleKVError, match=f"^{len(others)} of {len(others)} tokens'"):
                    self.cache.check(version, array(others))

    def teardown(self) -> None:
        for lease in list(self.open_leases):
            self.let_go(lease)
        for reserved in list(self.open_reservations):
            self.end(reserved)
        with self.cache.reservation() as everything:
            assert sorted(everything.take("c", self.capacity).tolist()) == list(range(self.capacity))


@pytest.mark.parametrize("page_size", some_fast(PAGE_SIZES, [3]))
def test_any_order_of_calls(page_size: int) -> None:
    make: Any = partial(CacheMachine, page_size)
    run_state_machine_as_test(make, settings=machine_test)
