"""The radix tree and the prefix cache by example."""

import pytest
from cache_model import array

from twinpass.cache.prefix_cache import PrefixCache
from twinpass.cache.tree import NONE, RadixTree, Slots
from twinpass.core import Tokens
from twinpass.errors import CacheFullError, StaleKVError


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
