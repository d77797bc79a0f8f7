"""Records kept as bytes: what comes back is what came, to the bit, in a fraction of the memory."""

import math
import tracemalloc
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinpass.compact import RECENT, Compact
from twinpass.core import CacheStatistics, Estimate, Lesson, Observation, PrefixReport, Probe, StepReport, Work


@dataclass(frozen=True)
class Thing:
    """Anything."""

    value: Any


def compact(*items: Thing) -> Compact[Thing]:
    """Some things, none of which is among the last that are kept as they came."""
    kept = Compact(items)
    kept._recent.clear()
    return kept


leaves = (
    st.floats()
    | st.integers()
    | st.text()
    | st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 2**64 - 1, 2**64, 0.0, -0.0, math.nan, math.inf, "\ud800", "as it is"])
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4).map(tuple) | st.dictionaries(st.text(), inner, max_size=3) | inner.map(Thing)
    ),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(values.map(Thing), max_size=8))
def test_whatever_records_hold_comes_back(things: list[Thing]) -> None:
    assert repr(compact(*things)) == repr(things)


def test_forms_are_told_apart_where_python_takes_values_for_equal() -> None:
    alike = [
        Thing(value)
        for value in (0, False, 0.0, -0.0, 1, True, 1.0, (0, 1), (0.0, 1.0), (False, True), (0.0, 1), (0, 1.0), ())
    ]
    assert repr(compact(*alike, *reversed(alike))) == repr([*alike, *reversed(alike)])


def test_it_is_a_sequence() -> None:
    things = [Thing(i) for i in range(RECENT + 9)]
    kept = Compact(things)
    assert len(kept) == len(things)
    assert kept == things
    assert kept != things[:-1]
    assert (kept[0], kept[-1], kept[-len(things)], kept[8]) == (things[0], things[-1], things[0], things[8])
    assert (kept[3:12:4], kept[-3:], kept[::-9]) == (things[3:12:4], things[-3:], things[::-9])
    assert list(reversed(kept)) == things[::-1]
    for beyond in (len(things), -len(things) - 1):
        with pytest.raises(IndexError):
            kept[beyond]


@pytest.mark.parametrize("to", [0, 1, RECENT, RECENT + 8, RECENT + 9, RECENT + 50])
def test_what_is_cut_off_is_gone_and_what_comes_then_follows_the_rest(to: int) -> None:
    things = [Thing((i, float(i))) for i in range(RECENT + 9)]
    kept = Compact(things)
    kept.cut(to)
    assert kept == things[:to]
    more = [Thing("other"), Thing(None)]
    for thing in more:
        kept.append(thing)
    assert kept == [*things[:to], *more]


def test_what_cannot_be_kept_leaves_what_there_is() -> None:
    kept = Compact([Thing(1.0)])
    with pytest.raises(TypeError, match="unhashable"):
        kept.append(Thing((2.0, {3})))
    kept.append(Thing(4.0))
    assert kept == [Thing(1.0), Thing(4.0)]


def test_a_whole_step_comes_back() -> None:
    step = StepReport(
        7,
        Estimate((Probe(2**64 - 1, 3), Probe(0)), 1e-3, ((1.5, -0.0), (math.pi, 2.0)), (0.5, -3.0), (1.0, 2.0)),
        (0.25, -1.5),
        1e-4,
        Work(5, 3, {"prefix": 2}),
        CacheStatistics(1, 2, 3),
        Observation(PrefixReport(1, 0, (0.5, 0.25), (1e-9,), 4, None), (1.0,), (2.0,), ((1e-3, 1.0, 2.0),), 0.5, None),
        "ab" * 32,
        {"reward": 0.5},
        Lesson(((3, 0, 99), (5,), ()), (1.0, -1.0, 0.0), ((-0.5, -1.5, 0.0),)),
        0.01,
    )
    kept = Compact([step] * 3)
    kept._recent.clear()
    assert repr(kept) == repr([step] * 3)


def test_a_step_takes_its_numbers_and_little_else() -> None:
    """A step of two probes has 14 numbers that differ from step to step; as objects it takes some 1,100 bytes."""
    chance = iter(range(1, 10**9))

    def step(number: int) -> StepReport:
        probes = tuple(Probe(next(chance) << 32) for _ in range(2))
        losses = tuple((next(chance) / 7, next(chance) / 7) for _ in range(2))
        estimate = Estimate(probes, next(chance) / 7, losses, (next(chance) / 7, next(chance) / 7))
        return StepReport(number, estimate, (next(chance) / 7, next(chance) / 7), next(chance) / 7)

    kept, count = Compact[StepReport](), 4000
    for number in range(RECENT):
        kept.append(step(number))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(count):
        kept.append(step(number))
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(kept._forms) <= 2, "step 0 has another form"
    assert grown / count < 14 * 8 + 80
