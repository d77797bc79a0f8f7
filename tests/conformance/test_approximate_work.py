"""What approximations cost: token-layers as the layers ran them, and slots that all come back."""

from dataclasses import replace

import pytest
from approximating import (
    CUT,
    HEAD,
    HEADED,
    MINUS,
    MIRRORED,
    MIXED,
    PLUS,
    WHOLE,
    approximate_engine,
    free_slots,
    prefix_of,
    scorer_of,
)
from architectures import ARCHITECTURES, build, deviation
from reusing import TERMS, rows_by_layer

from twinpass.core import Lane, PrefixReport, Probe, Request, Term
from twinpass.errors import CacheFullError
from twinpass.reuse.plan import Spans

PAIR = (PLUS, MIRRORED)
KEEP, CARRY = Spans("returning", 2, "keep"), Spans("returning", 2, "carried")


@pytest.mark.table
@pytest.mark.parametrize(
    ("name", "chunk_rows"), [*((name, 4096) for name in ARCHITECTURES), ("llama", 5), ("gemma2", 5)]
)
def test_work_is_what_the_layers_ran(name: str, chunk_rows: int) -> None:
    engine = approximate_engine(name, chunk_rows=chunk_rows)
    requests = HEADED[:5] if chunk_rows < 50 else HEADED
    rows = sum(len(request.inputs) for request in requests)
    for lanes, spans in ((MIXED, WHOLE[0]), (PAIR, KEEP), (MIXED, CARRY), (MIXED, CUT[0]), (PAIR, CUT[2])):
        with rows_by_layer(engine.model) as counts:
            work = engine.score(requests, lanes, spans).work
        assert sum(counts) == work.computed
        assert work.demand == 2 * len({lane.exact for lane in lanes}) * rows
        assert work.demand - work.computed == sum(work.reused.values())
        assert all((count > 0) == (source != "measured") for source, count in work.reused.items())


SHARED, OWN, AFTER = 6, 2, 3
REQUESTS = [Request((*HEAD, i, i + 1, 3, 4), (5, 6), SHARED + OWN) for i in (10, 20)]
"""Two prompts: ``HEAD``, two tokens of their own, then a suffix of two; with the first answer token three rows follow."""
PREFIX = SHARED + 2 * OWN
LAYERS = 2


def test_sources() -> None:
    """(1 + q) passes over the prefix, not 2 q; one, not two, where the base lane's are carried."""
    engine = approximate_engine("llama")
    two = (*PAIR, replace(PLUS, probe=Probe(9)), replace(MIRRORED, probe=Probe(9)))
    demand, rest = 2 * (SHARED + OWN + AFTER), 2 * AFTER
    work = engine.score(REQUESTS, two, WHOLE[0]).work
    assert work.demand == LAYERS * 4 * demand
    assert work.computed == LAYERS * (3 * PREFIX + 4 * rest)
    assert work.reused == {"reflected": LAYERS * PREFIX, "shared_prefix": LAYERS * 4 * (demand - PREFIX - rest)}

    kept, carried = engine.score(REQUESTS, PAIR, KEEP), engine.score(REQUESTS, PAIR, CARRY)
    after = 2 * (OWN + AFTER)
    assert kept.work.computed == LAYERS * (2 * SHARED + 2 * after)
    assert carried.work.computed == LAYERS * (SHARED + 2 * after)
    assert carried.work.reused["transported"] == LAYERS * SHARED
    assert carried.work.reused["shared_prefix"] == LAYERS * 2 * SHARED
    assert set(kept.work.reused) == {"shared_prefix"}

    measured = engine.score(REQUESTS, (*PAIR, MINUS), WHOLE[0]).work
    assert measured.computed == LAYERS * (3 * PREFIX + 3 * rest)
    assert measured.demand == LAYERS * 2 * demand
    assert measured.reused["measured"] == -LAYERS * PREFIX

    frozen = engine.score(REQUESTS, [replace(lane.exact, prefix="base") for lane in two], WHOLE[0]).work
    assert frozen.computed == LAYERS * (PREFIX + 4 * rest)
    assert frozen.reused["frozen"] == LAYERS * 3 * PREFIX


def test_acceptance_is_counted_in_token_layers() -> None:
    engine = approximate_engine("llama")
    reports = [engine.score(REQUESTS, PAIR, Spans("prompt", cut)).prefix for cut in (0, 1, 2)]
    counts = [(report.accepted, report.rejected) for report in reports]
    assert counts == [(0, 2 * PREFIX), (PREFIX, PREFIX), (2 * PREFIX, 0)]
    assert [report.hit_rate for report in reports] == [0.0, 0.5, 1.0]
    assert engine.score(REQUESTS, [Lane(prefix="base")], WHOLE[0]).prefix == PrefixReport()
    assert PrefixReport().hit_rate is None


def test_slots_come_back() -> None:
    engine = approximate_engine("llama", slots=1000)
    for spans in (WHOLE[0], WHOLE[1], CUT[0], CUT[2]):
        for _ in range(2):
            assert engine.score(HEADED, MIXED, spans).cache.held == 0
            assert free_slots(engine) == 1000
    for spans in (KEEP, CARRY, CARRY, KEEP):
        engine.score(HEADED, MIXED, spans)
        assert free_slots(engine) == 1000 - 3 * len(HEAD)  # of the base lane, and of PLUS and OTHER
        engine.update([Term(7, 1e-3)])
        assert free_slots(engine) == 1000 - len(HEAD)
    engine.score(HEADED, MIXED, KEEP)
    engine.update(TERMS)  # leaves the known directions
    assert free_slots(engine) == 1000


def test_a_reset_releases_what_is_carried() -> None:
    engine = approximate_engine("llama", slots=1000, reload=lambda: dict(build("llama").named_parameters()))
    before = engine.score(HEADED, PAIR, KEEP)
    assert free_slots(engine) < 1000
    engine.reset()
    assert free_slots(engine) == 1000
    again = engine.score(HEADED, PAIR, CARRY)
    assert again.prefix.age == 0
    assert [deviation(a, b) for a, b in zip(again.values, before.values, strict=True)] == [0.0, 0.0]


def test_what_is_carried_gets_older_until_it_is_computed_again() -> None:
    engine, ages, carried = approximate_engine("llama"), [], []
    for spans in (KEEP, CARRY, CARRY, KEEP, CARRY):
        report = engine.score(HEADED, PAIR, spans).prefix
        ages.append(report.age)
        carried.append(report.carried is not None)
        engine.update([Term(7, 1e-3)])
    assert ages == [0, 1, 2, 0, 1]
    assert carried == [False, False, False, True, False]


@pytest.mark.parametrize(("length", "age", "carried"), [(6, 1, 6), (4, 1, 4), (3, 0, 6), (0, 0, 6)])
def test_what_is_carried_serves_a_batch_that_shares_most_of_it(length: int, age: int, carried: int) -> None:
    """Of the batch's own shared prefix of six tokens, more than half; only those are carried on from then on."""
    engine = approximate_engine("llama")
    engine.score(REQUESTS, PAIR, KEEP)
    engine.update([Term(7, 1e-3)])
    head = (*HEAD[:length], *range(30, 36 - length))
    other = [replace(request, prompt=head + request.prompt[SHARED:]) for request in REQUESTS]
    assert engine.score(other, PAIR, CARRY).prefix.age == age
    carry = scorer_of(engine).prefixes.carry
    assert carry is not None
    assert carry.tokens == head[:carried]


def test_errors_of_a_group_survive_one_without_prefixes() -> None:
    """A cut batch reports the largest error of its parts, also where a part has nothing to measure."""
    lanes, requests = (*PAIR, MINUS), [HEADED[5], Request((40,), (41,))]
    expected = approximate_engine("llama").score(requests[:1], lanes, WHOLE[0]).prefix
    engine = approximate_engine("llama", slots=4 * 28)
    assert len(prefix_of(requests[0])) > 4 * 28 // (2 * (len(lanes) + 1))  # a group of its own
    assert engine.score(requests, lanes, WHOLE[0]).prefix.errors == pytest.approx(expected.errors)


def test_a_score_that_found_no_room_leaves_nothing_behind() -> None:
    """What it had begun to carry is right or gone, and all slots come back."""
    engine, roomy = approximate_engine("llama", slots=40), approximate_engine("llama")
    engine.score(REQUESTS, PAIR, KEEP)
    many = [replace(PLUS, probe=Probe(seed)) for seed in range(5)]
    with pytest.raises(CacheFullError, match=r"raise reuse\.budget"):
        engine.score(REQUESTS, [*many, replace(many[0], sign=-1, prefix="reflected")], KEEP)
    found, expected = engine.score(REQUESTS, PAIR, CARRY), roomy.score(REQUESTS, PAIR, KEEP)
    assert max(deviation(a, b) for a, b in zip(found.values, expected.values, strict=True)) < 1e-9
    scorer_of(engine).prefixes.drop()
    assert free_slots(engine) == 40
