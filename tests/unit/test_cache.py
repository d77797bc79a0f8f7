"""The radix tree and the prefix cache, against a dictionary that holds every prefix by itself."""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, takewhile

import numpy as np
import pytest
from hypothesis import settings
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

from twinpass.cache.prefix_cache import PrefixCache, Reservation
from twinpass.cache.tree import NONE, Match, RadixTree, Slots, Tokens
from twinpass.errors import CacheFullError, StaleKVError

Key = tuple[str, Tokens]
Content = tuple[str, int, Tokens]
Text = list[int]

PAGE_SIZES = (1, 2, 3, 16)
VERSIONS = ("a", "b")
versions = st.sampled_from(VERSIONS)
texts = st.lists(st.integers(0, 2), min_size=1, max_size=5)
cuts = st.integers(0, 40)
first_texts = st.lists(texts, min_size=2, max_size=4)
machine_test = settings(deadline=None, max_examples=75, stateful_step_count=40, report_multiple_bugs=False)


def array(slots: Iterable[int]) -> Slots:
    return np.fromiter(slots, np.int64)


def spell(text: Text, page_size: int) -> Tokens:
    """Two pages that differ in their last token, and a word that ends inside a page."""
    words = ((0,) * page_size, (0,) * (page_size - 1) + (1,), (0,) * ((page_size + 1) // 2))
    return tuple(token for word in text for token in words[word])


def shortened(tokens: Tokens, cut: int) -> Tokens:
    return tokens[: len(tokens) - cut % (len(tokens) + 1)]


class Model:
    """Every prefix of whole pages that is held: its last page's slots, and when it was used last."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.held: dict[Key, list[int]] = {}
        self.used: dict[Key, int] = {}
        self.pins: Counter[int] = Counter()
        self.stale: set[int] = set()
        self.clock = 0

    @property
    def owned(self) -> set[int]:
        return {*chain(*self.held.values()), *self.stale}

    @property
    def evictable(self) -> list[Key]:
        """Last pages of what was used least recently first."""
        unpinned = [key for key, page in self.held.items() if not self.pins[page[0]]]
        return sorted(unpinned, key=lambda key: (self.used[key], -len(key[1])))

    @property
    def room(self) -> int:
        return len(self.evictable) * self.page_size

    def prefixes(self, version: str, tokens: Tokens) -> list[Key]:
        return [(version, tokens[:stop]) for stop in range(self.page_size, len(tokens) + 1, self.page_size)]

    def match(self, version: str, tokens: Tokens) -> list[int]:
        self.clock += 1
        found = list(takewhile(self.held.__contains__, self.prefixes(version, tokens)))
        self.used.update(dict.fromkeys(found, self.clock))
        return [slot for key in found for slot in self.held[key]]

    def insert(self, version: str, tokens: Tokens, slots: Sequence[int]) -> list[int]:
        start, new = len(self.match(version, tokens)), list[int]()
        for key in self.prefixes(version, tokens)[start // self.page_size :]:
            page = list(slots[len(key[1]) - self.page_size : len(key[1])])
            if not self.owned.isdisjoint(page):
                break
            self.held[key], self.used[key] = page, self.clock
            new += page
        return new

    def release(self, slots: Sequence[int]) -> set[int]:
        self.pins.subtract(slots)
        freed = {slot for slot in slots if slot in self.stale and not self.pins[slot]}
        self.stale -= freed
        return freed

    def evict(self, count: int, total: int) -> set[int]:
        """Evict ``total`` slots; so many have to be just what it takes to free ``count`` > 0 in whole edges."""
        order, pages = self.evictable, total // self.page_size
        assert pages * self.page_size == total
        assert min(count, self.room) <= total <= self.room
        last = (count - 1) // self.page_size
        assert all(self.used[key] == self.used[order[last]] for key in order[last:pages])
        return {slot for key in order[:pages] for slot in self.held.pop(key)}

    def invalidate(self, version: str) -> set[int]:
        gone = {slot for key in list(self.held) if key[0] == version for slot in self.held.pop(key)}
        leased = {slot for slot in gone if self.pins[slot]}
        self.stale |= leased
        return gone - leased


@dataclass(eq=False)
class Pin:
    """A lease that is open in the tree."""

    version: str
    tokens: Tokens
    match: Match


class TreeMachine(RuleBasedStateMachine):
    """The tree alone, slots handed out by the test."""

    leases = Bundle[Pin]("leases")
    known = Bundle[Text]("known")

    def __init__(self, page_size: int) -> None:
        super().__init__()
        self.page_size, self.slots = page_size, set(range(12 * page_size))
        self.tree, self.model = RadixTree(page_size), Model(page_size)
        self.open: list[Pin] = []

    @property
    def free(self) -> list[int]:
        return sorted(self.slots - self.model.owned)

    def find(self, version: str, tokens: Tokens) -> Match:
        match = self.tree.match(version, tokens)
        assert match.slots.tolist() == self.model.match(version, tokens)
        return match

    def let_go(self, pin: Pin) -> None:
        self.expect(self.tree.release(pin.match.node), self.model.release(pin.match.slots.tolist()))

    def put(self, version: str, text: Text, foreign: int | None) -> None:
        """What is held has no slots given; ``foreign`` is where a slot is given that another prefix is held in."""
        tokens, owned = spell(text, self.page_size), self.model.owned
        known = len(self.model.match(version, tokens))
        slots = [-1] * known + self.free[: len(tokens) - known]
        tokens = tokens[: len(slots)]
        if foreign is not None and owned and len(tokens) > known:
            slots[known + foreign % (len(tokens) - known)] = min(owned)
        new = self.tree.insert(version, tokens, array(slots))
        assert new.tolist() == self.model.insert(version, tokens, slots)

    @initialize(target=known, texts=first_texts)
    def fill(self, texts: list[Text]) -> MultipleResults[Text]:
        for text in texts:
            self.put("a", text, None)
        return multiple(*texts)

    @rule(target=known, version=versions, text=texts, foreign=st.none() | st.integers(0, 40))
    def insert(self, version: str, text: Text, foreign: int | None) -> Text:
        self.put(version, text, foreign)
        return text

    @rule(version=versions, text=known | texts)
    def match(self, version: str, text: Text) -> None:
        self.find(version, spell(text, self.page_size))

    @rule(target=leases, version=versions, text=known | texts)
    def lease(self, version: str, text: Text) -> Pin:
        tokens = spell(text, self.page_size)
        pin = Pin(version, tokens, self.find(version, tokens))
        self.tree.lease(pin.match.node)
        self.model.pins.update(pin.match.slots.tolist())
        self.open.append(pin)
        return pin

    @rule(pin=leases, cut=cuts)
    def match_inside(self, pin: Pin, cut: int) -> None:
        self.find(pin.version, shortened(pin.tokens, cut))

    @rule(pin=consumes(leases))
    def release(self, pin: Pin) -> None:
        self.open.remove(pin)
        self.let_go(pin)

    @rule(pages=st.integers(0, 2), more=st.integers(0, 15))
    def evict(self, pages: int, more: int) -> None:
        count = 1 + pages * self.page_size + more % self.page_size
        freed = self.tree.evict(count)
        self.expect(freed, self.model.evict(count, len(freed)))

    @rule(version=leases.map(lambda lease: lease.version))
    def invalidate(self, version: str) -> None:
        self.expect(self.tree.invalidate(version), self.model.invalidate(version))

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.tree) == len(self.model.owned)
        assert self.tree.evictable == self.model.room

    def expect(self, freed: Slots, expected: set[int]) -> None:
        assert sorted(freed.tolist()) == sorted(expected)

    def teardown(self) -> None:
        for pin in self.open:
            self.let_go(pin)
        assert len(self.tree.evict(len(self.slots))) == len(self.model.owned)
        assert len(self.tree) == 0


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


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("machine", [TreeMachine, CacheMachine])
def test_any_order_of_calls(machine: type[TreeMachine | CacheMachine], page_size: int) -> None:
    run_state_machine_as_test(partial(machine, page_size), settings=machine_test)  # type: ignore[arg-type]


# --- examples


def held(cache: PrefixCache, version: str, tokens: Tokens) -> Slots:
    """Hold ``tokens``, all of them new; their slots."""
    with cache.reservation() as reservation:
        slots = reservation.take(version, len(tokens))
        reservation.insert(version, tokens, slots)
    return slots


def found(cache: PrefixCache, version: str, tokens: Tokens) -> list[int]:
    with cache.lease(version, tokens) as slots:
        return [int(slot) for slot in slots]


def test_a_split_keeps_the_lease_on_both_parts() -> None:
    tree = RadixTree()
    tree.insert("a", (1, 2, 3, 4), array([10, 11, 12, 13]))
    whole = tree.match("a", (1, 2, 3, 4))
    tree.lease(whole.node)
    assert tree.match("a", (1, 2, 9)).slots.tolist() == [10, 11]
    tree.insert("a", (1, 2, 5), array([10, 11, 14]))
    assert tree.evictable == 1
    assert tree.evict(9).tolist() == [14]
    assert tree.match("a", (1, 2, 3, 4)).slots.tolist() == [10, 11, 12, 13]
    assert tree.release(whole.node).tolist() == []
    assert tree.evict(1).tolist() == [12, 13]
    assert tree.evict(1).tolist() == [10, 11]


def test_a_lease_on_the_upper_part_lets_the_lower_part_go() -> None:
    tree = RadixTree()
    tree.insert("a", (1, 2, 3, 4), array([10, 11, 12, 13]))
    tree.lease(tree.match("a", (1, 2)).node)
    assert tree.evictable == 2
    assert tree.evict(9).tolist() == [12, 13]


def test_least_recently_used_goes_first() -> None:
    tree = RadixTree()
    tree.insert("a", (1, 2), array([10, 11]))
    tree.insert("a", (1, 3), array([10, 12]))
    tree.insert("b", (1, 2), array([13, 14]))
    tree.match("a", (1, 2))
    assert [tree.evict(1).tolist() for _ in range(5)] == [[12], [13, 14], [11], [10], []]


def test_pages_are_held_whole() -> None:
    tree = RadixTree(page_size=3)
    assert tree.insert("a", (1, 2, 3, 4, 5, 6, 7), array(range(10, 17))).tolist() == [10, 11, 12, 13, 14, 15]
    assert tree.match("a", (1, 2, 3, 4, 5)).slots.tolist() == [10, 11, 12]
    assert tree.match("a", (1, 2, 3, 4, 5, 9)).slots.tolist() == [10, 11, 12]
    assert tree.match("a", (1, 2)).slots.tolist() == []


def test_a_page_is_not_held_in_a_slot_that_another_page_is_held_in() -> None:
    tree = RadixTree(page_size=2)
    tree.insert("a", (1, 2, 3, 4), array([10, 11, 12, 13]))
    assert tree.insert("a", (1, 2, 3, 5, 6, 7), array([10, 11, 12, 14, 15, 16])).tolist() == []
    assert tree.match("a", (1, 2, 3, 5, 6, 7)).slots.tolist() == [10, 11]
    assert len(tree) == 4


def test_callers_may_write_to_their_arrays() -> None:
    tree, cache, slots = RadixTree(), PrefixCache(2), array([10, 11])
    tree.insert("a", (1, 2), slots)
    slots[:] = -1
    assert tree.match("a", (1, 2)).slots.tolist() == [10, 11]
    with cache.reservation() as reservation:
        reservation.take("a", 2)[:] = -1
    with cache.reservation() as reservation:
        assert sorted(reservation.take("a", 2).tolist()) == [0, 1]
    held(cache, "a", (1, 2))
    with cache.lease("a", (1, 2)) as leased:
        leased[:] = -1
    assert sorted(found(cache, "a", (1, 2))) == [0, 1]


def test_nothing() -> None:
    tree, cache = RadixTree(), PrefixCache(3)
    tree.insert("a", (1, 2), array([10, 11]))
    assert tree.evict(0).tolist() == []
    assert tree.match("a", ()).slots.tolist() == []
    assert tree.invalidate("b").tolist() == []
    with cache.reservation() as reservation:
        assert reservation.take("a", 0).tolist() == []
        reservation.insert("a", (), NONE)
    cache.check("b", NONE)
    assert (cache.held, cache.free) == (0, 3)


def test_invalidated_while_leased_is_free_after_the_release() -> None:
    cache = PrefixCache(4)
    slots = held(cache, "a", (1, 2, 3))
    with cache.lease("a", (1, 2)) as leased:
        cache.check("a", leased)
        cache.invalidate("a")
        with pytest.raises(StaleKVError, match="2 of 2 tokens' keys and values belong to other weights than a"):
            cache.check("a", leased)
        assert found(cache, "a", (1, 2, 3)) == []
        assert (cache.held, cache.free) == (2, 2)
        with cache.reservation() as reservation:
            assert set(reservation.take("b", 2).tolist()).isdisjoint(slots[:2])
            with pytest.raises(CacheFullError, match="1 more tokens do not fit: 0 of 4 can be freed"):
                reservation.take("b", 1)
    assert (cache.held, cache.free) == (0, 4)


def test_a_version_that_comes_back_does_not_find_its_former_self() -> None:
    cache = PrefixCache(6)
    with cache.reservation() as reservation:
        reserved = reservation.take("a", 2)
        held(cache, "a", (1, 2))
        with cache.lease("a", (1, 2)) as leased:
            cache.invalidate("a")
            again = held(cache, "a", (7,))
            cache.check("a", again)
            for old in (reserved, leased):
                with pytest.raises(StaleKVError):
                    cache.check("a", old)
            with pytest.raises(StaleKVError):
                reservation.insert("a", (1, 2), reserved)
            assert found(cache, "a", (1, 2)) == []
    assert found(cache, "a", (7,)) == again.tolist()
    assert (cache.held, cache.free) == (1, 5)


def test_another_version_finds_nothing() -> None:
    cache = PrefixCache(4)
    slots = held(cache, "a", (1, 2))
    assert found(cache, "b", (1, 2)) == []
    with pytest.raises(StaleKVError):
        cache.check("b", slots)
    assert found(cache, "a", (1, 2)) == slots.tolist()


def test_a_full_cache_keeps_what_it_has() -> None:
    cache = PrefixCache(4)
    held(cache, "a", (1,))
    held(cache, "a", (2,))
    with cache.lease("a", (1,)), cache.reservation() as reservation:
        reservation.take("a", 2)
        with pytest.raises(CacheFullError, match="2 more tokens do not fit: 1 of 4 can be freed"):
            reservation.take("b", 2)
        assert (cache.held, cache.evicted) == (2, 0)
        reservation.take("b", 1)
        assert (cache.held, cache.evicted) == (1, 1)


def test_a_block_that_fails_frees_its_slots_and_ends_its_lease() -> None:
    cache = PrefixCache(4)
    held(cache, "a", (1, 2))
    with pytest.raises(CacheFullError), cache.lease("a", (1, 2)), cache.reservation() as reservation:
        reservation.take("b", len(reservation.take("b", 2)))
    assert cache.free == 2
    held(cache, "b", (1, 2, 3, 4))
    assert cache.evicted == 2
