"""A cache as a dictionary that holds every prefix by itself: what the radix tree has to equal."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, takewhile

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from twinpass.cache.tree import Slots
from twinpass.core import Tokens

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
