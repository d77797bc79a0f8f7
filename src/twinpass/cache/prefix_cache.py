"""The radix cache's face: look up, lease, reserve, hold and evict slots of a pool of fixed size."""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import numpy as np

from twinpass.cache.tree import RadixTree, Slots
from twinpass.core import Tokens
from twinpass.errors import CacheError, CacheFullError, StaleKVError

FREE = 0
"""The number of no version: what is written in a slot that is free."""

UNKNOWN = -1
"""The number of a version under which nothing was ever reserved: no slot has it."""


class PrefixCache:
    """Owns ``capacity`` slots, each free, reserved by a caller, or held in the tree under a weights version.

    ::

        free            -- take -->     reserved            -- insert -->     held
        _free[:_left]                   Reservation.slots                     RadixTree: leased nodes stay,
          ^                                |                                  others may be evicted
          |<-- at the end of the block ----'                                     |
          |<-- evicted, or invalidated and no longer leased ---------------------'

    A version has a number, from 1 on; ``_written`` [capacity] says under which one each slot was reserved.

    Args:
        capacity: how many slots there are; a slot holds one token's keys and values, in the layers its version covers.
        page_size: see :class:`RadixTree`.
    """

    def __init__(self, capacity: int, page_size: int = 1) -> None:
        self.capacity, self.page_size = capacity, page_size
        self.evicted = 0
        self._tree = RadixTree(page_size)
        self._free = np.arange(capacity - 1, -1, -1, dtype=np.int64)
        self._left = capacity
        self._written = np.full(capacity, FREE, np.int64)
        self._numbers: dict[Hashable, int] = {}
        self._next = 1

    @property
    def held(self) -> int:
        """Slots in the tree."""
        return len(self._tree)

    @property
    def free(self) -> int:
        """Slots that are neither held nor reserved."""
        return self._left

    @contextmanager
    def lease(self, version: Hashable, tokens: Tokens) -> Iterator[Slots]:
        """Inside the block the longest held prefix of ``tokens`` stays; yields its slots."""
        match = self._tree.match(version, tokens)
        self._tree.lease(match.node)
        try:
            yield match.slots
        finally:
            self._give_back(self._tree.release(match.node))

    @contextmanager
    def reservation(self) -> Iterator["Reservation"]:
        """Inside the block slots can be reserved; those that were not inserted by its end are free again."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            reservation.drop(np.fromiter(reservation.slots, np.int64))

    def check(self, version: Hashable, slots: Slots) -> None:
        """Make sure that ``slots`` hold keys and values computed under ``version``.

        Raises:
            StaleKVError: one does not.
        """
        wrong = self._written[slots] != self._numbers.get(version, UNKNOWN)
        if wrong.any():
            raise StaleKVError(
                f"{int(wrong.sum())} of {len(slots)} tokens' keys and values belong to other weights than {version}; "
                "look them up under the version that is running"
            )

    def rename(self, old: Hashable, new: Hashable) -> None:
        """What was computed under ``old`` has been brought to ``new`` by its owner, slot by slot; nothing is held in the tree.

        Raises:
            CacheError: ``new`` is in use already.
        """
        if new in self._numbers:
            raise CacheError(f"there are keys and values of {new} already; forget them first")
        self._numbers[new] = self._numbers.pop(old)

    def invalidate(self, version: Hashable) -> None:
        """Forget everything computed under ``version``; reading it from a lease still open raises StaleKVError."""
        self._give_back(self._tree.invalidate(version))
        self._numbers.pop(version, None)

    def _take(self, version: Hashable, count: int) -> Slots:
        if count > self._left:
            if count > self._left + self._tree.evictable:
                raise CacheFullError(
                    f"{count} more tokens do not fit: {self._left + self._tree.evictable} of {self.capacity} can be freed"
                )
            freed = self._tree.evict(count - self._left)
            self.evicted += len(freed)
            self._give_back(freed)
        if version not in self._numbers:
            self._numbers[version] = self._next
            self._next += 1
        self._left -= count
        slots = self._free[self._left : self._left + count].copy()
        self._written[slots] = self._numbers[version]
        return slots

    def _hold(self, version: Hashable, tokens: Tokens, slots: Slots) -> Slots:
        self.check(version, slots)
        return self._tree.insert(version, tokens, slots)

    def _give_back(self, slots: Slots) -> None:
        self._written[slots] = FREE
        self._free[self._left : self._left + len(slots)] = slots
        self._left += len(slots)


class Reservation:
    """Slots on their way into the cache."""

    def __init__(self, cache: PrefixCache) -> None:
        self._cache = cache
        self.slots: set[int] = set()

    def take(self, version: Hashable, count: int) -> Slots:
        """Reserve ``count`` slots for keys and values of ``version``, evicting what was used least recently.

        Raises:
            CacheFullError: too much is leased or reserved; nothing was evicted then.
        """
        slots = self._cache._take(version, count)
        self.slots.update(slots.tolist())
        return slots

    def insert(self, version: Hashable, tokens: Tokens, slots: Slots) -> None:
        """Hold a sequence whose keys and values are in ``slots``, one a token; what is held already is left alone.

        Raises:
            StaleKVError: a slot was reserved for another version.
        """
        self.slots.difference_update(self._cache._hold(version, tokens, slots).tolist())

    def hand_over(self, slots: Slots, to: "Reservation") -> None:
        """Let another reservation own some of the slots."""
        moved = set(slots.tolist())
        self.slots -= moved
        to.slots |= moved

    def drop(self, slots: Slots) -> None:
        """Free reserved slots."""
        self.slots.difference_update(slots.tolist())
        self._cache._give_back(slots)
