"""The radix tree, in any order of calls, against a dictionary of prefixes."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from cache_model import (
    PAGE_SIZES,
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

from twinpass.cache.tree import Match, RadixTree, Slots
from twinpass.core import Tokens


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


@pytest.mark.parametrize("page_size", some_fast(PAGE_SIZES, [3]))
def test_any_order_of_calls(page_size: int) -> None:
    make: Any = partial(TreeMachine, page_size)
    run_state_machine_as_test(make, settings=machine_test)
