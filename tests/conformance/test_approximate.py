"""Approximate lanes are what they are defined to be, on every model; exact lanes beside them stay exact."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from approximating import (
    CUT,
    EXACT,
    FROZEN,
    HEAD,
    HEADED,
    MINUS,
    MIRRORED,
    MIXED,
    OTHER,
    PLUS,
    WHOLE,
    approximate_engine,
    blend,
    mirror,
    prefill,
    prefix_of,
    scored_after,
)
from architectures import build, deviation, engine_of, in_lane, shifted
from reusing import PROMPTS, assert_same, packed

from twinpass.core import BASE, Lane, Probe, Request, Scores, Term
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import ModelError
from twinpass.model.trainable import Activated, Full, Layers, Lora, Trainable
from twinpass.reuse.base import Policy
from twinpass.reuse.debiased import Debiased
from twinpass.reuse.frozen import Frozen
from twinpass.reuse.plan import Spans
from twinpass.reuse.reflected import Reflected
from twinpass.reuse.transported import Transported

PREFIXED = [request for request in HEADED[:6] if len(prefix_of(request)) > len(HEAD)]


@packed
def test_reflected_lanes_by_definition(name: str) -> None:
    engine = approximate_engine(name)
    base, names = engine.model, list(engine.parameters)
    plus, minus = (in_lane(base, names, lane, "binomial") for lane in (PLUS, MINUS))
    for cut in (1, 2):
        found = engine.score(PREFIXED, [PLUS, MIRRORED], Spans("prompt", cut)).values[1]
        prefixes = [mirror(base, plus, minus, prefix_of(request), cut) for request in PREFIXED]
        expected = [scored_after(minus, kv, request) for kv, request in zip(prefixes, PREFIXED, strict=True)]
        assert deviation(found, expected) < 1e-9
        assert deviation(found, engine.score(PREFIXED, [MINUS]).values[0]) > 1e-3


@packed
def test_frozen_lanes_by_definition(name: str) -> None:
    engine = approximate_engine(name)
    base = engine.model
    other = in_lane(base, list(engine.parameters), OTHER, "binomial")
    found = engine.score(PREFIXED, [FROZEN], Spans("prompt", 2)).values[0]
    expected = [scored_after(other, prefill(base, prefix_of(request))[0], request) for request in PREFIXED]
    assert deviation(found, expected) < 1e-9
    assert deviation(found, engine.score(PREFIXED, [OTHER]).values[0]) > 1e-3


@packed
def test_carried_prefixes_by_definition(name: str) -> None:
    """After ``theta += delta z`` the shared prefix is ``KV0 + (delta / eps) (KV+ - KV0)``, and reflected about that."""
    engine, delta = approximate_engine(name), 0.02
    names, before = list(engine.parameters), build(name)
    engine.score(HEADED, [PLUS, MIRRORED], Spans("returning", 2, "keep"))
    engine.update([Term(7, delta)])
    up, down = Lane(Probe(12), 1, 0.05), Lane(Probe(12), -1, 0.05, "reflected")
    scores = engine.score(HEADED, [up, down], Spans("returning", 2, "carried"))

    share, old_plus = delta / PLUS.eps, in_lane(before, names, PLUS, "binomial")
    about = blend([(1 - share, prefill(before, HEAD)[0]), (share, prefill(old_plus, HEAD)[0])])
    at = shifted(before, names, [Term(7, delta)], "binomial")
    plus, minus = in_lane(at, names, up, "binomial"), in_lane(at, names, down, "binomial")
    opposite = prefill(plus, HEAD)[0]
    reflected = blend([(2.0, about), (-1.0, opposite)])
    assert scores.prefix.age == 1
    assert deviation(scores.values[0], [scored_after(plus, opposite, request) for request in HEADED]) < 1e-9
    assert deviation(scores.values[1], [scored_after(minus, reflected, request) for request in HEADED]) < 1e-9


@packed
def test_errors_are_measured_by_definition(name: str) -> None:
    """By layer, how far reflections are from the twins, relative to how far those are from the base lane."""
    engine, request = approximate_engine(name), HEADED[5]
    base, names = engine.model, list(engine.parameters)
    report = engine.score([request], [PLUS, MIRRORED, MINUS], Spans("prompt", 2)).prefix
    plus, minus = (in_lane(base, names, lane, "binomial") for lane in (PLUS, MINUS))
    about, opposite, twin = (prefill(model, prefix_of(request))[0] for model in (base, plus, minus))
    off = blend([(2.0, about), (-1.0, opposite), (-1.0, twin)])
    moved = blend([(1.0, twin), (-1.0, about)])
    errors, drift = [], []
    for parts in zip(off, moved, about, strict=True):
        o, m, a = ([float(torch.linalg.vector_norm(tensor)) for tensor in pair] for pair in parts)
        errors.append(max(np.divide(o, m)))
        drift.append(max(np.divide(m, a)))
    assert report.errors == pytest.approx(errors, rel=1e-9)
    assert report.drift == pytest.approx(drift, rel=1e-9)
    assert engine.score([request], [PLUS, MIRRORED], Spans("prompt", 2)).prefix.errors == ()


@packed
def test_exact_lanes_are_untouched_by_those_beside_them(name: str) -> None:
    engine = approximate_engine(name)
    expected = dict(zip(EXACT, engine.score(HEADED, EXACT).values, strict=True))
    for spans in (*WHOLE, *CUT):
        scores = dict(zip(MIXED, engine.score(HEADED, MIXED, spans).values, strict=True))
        for lane in EXACT:
            assert deviation(scores[lane], expected[lane]) < 1e-9
        assert deviation(scores[Lane(prefix="base")], expected[BASE]) < 1e-9
        assert deviation(scores[FROZEN], expected[OTHER]) > 1e-3
        assert (deviation(scores[MIRRORED], expected[MINUS]) < 1e-9) == (spans.layers == 0)
        assert all(np.isfinite(score).all() for lane in scores.values() for score in lane)


SETTINGS: dict[str, dict[str, Any]] = {
    "page 16": {"page_size": 16},
    "chunks of 1": {"chunk_rows": 1},
    "chunks of 7, page 2": {"chunk_rows": 7, "page_size": 2},
    "small cache, several groups": {"slots": 200},
    "small cache, chunks of 50": {"slots": 220, "chunk_rows": 50},
}
FEW = (PLUS, MIRRORED, FROZEN, BASE)


@pytest.mark.table
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("spans", [WHOLE[0], Spans("returning", 1, "keep")], ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_any_cache_gives_the_same_approximation(name: str, spans: Spans, setting: str) -> None:
    engine, roomy, requests = approximate_engine(name, **SETTINGS[setting]), approximate_engine(name), HEADED[3:8]
    expected = roomy.score(requests, FEW, spans)
    assert_same(engine.score(requests, FEW, spans), expected)
    backwards = Scores([lane[::-1] for lane in expected.values], expected.work)
    assert_same(engine.score(requests[::-1], FEW, spans), backwards)


@pytest.mark.parametrize("spans", [*WHOLE, *CUT], ids=str)
def test_approximations_in_bfloat16(spans: Spans) -> None:
    """Sums of keys and values go back to the model's dtype; scores are those of float64 up to its rounding.

    Exact ones are 0.1 off; reflecting, and carrying, add roundings of two more lanes each.
    """
    narrow = build("llama", torch.bfloat16)
    wide = build("llama", torch.bfloat16)
    wide.double()
    values = []
    for model in (narrow, wide):
        engine = TorchEngine(model, Full(), reuse=Reflected())
        engine.score(HEADED, MIXED, spans)
        engine.update([Term(7, 0.02)])
        carried = replace(spans, base="carried") if spans.base == "keep" else spans
        scores = engine.score(HEADED, MIXED, carried)
        assert scores.prefix.errors
        values.append([score for lane in scores.values for score in lane])
    assert deviation(*values) < 0.5


def test_small_caches_really_cut_the_batch() -> None:
    roomy = approximate_engine("llama").score(HEADED[3:8], FEW, WHOLE[0]).work.computed
    small = approximate_engine("llama", **SETTINGS["small cache, several groups"])
    assert small.score(HEADED[3:8], FEW, WHOLE[0]).work.computed > roomy


def test_requests_without_a_prefix_are_exact() -> None:
    engine = approximate_engine("llama")
    bare = [replace(request, active_from=0) for request in PROMPTS]
    scores = engine.score(bare, [PLUS, MIRRORED, FROZEN], Spans("prompt", 2))
    assert_same(scores, engine.score(bare, [PLUS, MINUS, OTHER]), 1e-12)
    assert (scores.prefix.accepted, scores.prefix.rejected) == (0, 0)


def test_the_fallback_scores_approximate_plans_exactly() -> None:
    engine = engine_of("bloom", build("bloom"))
    assert not engine.takes_spans
    expected = engine.score(HEADED, [lane.exact for lane in MIXED])
    assert_same(engine.score(HEADED, MIXED, WHOLE[0]), expected, 1e-12)


def test_a_reflected_lane_needs_its_opposite() -> None:
    engine = approximate_engine("llama")
    for beside in (BASE, replace(PLUS, eps=0.04), replace(PLUS, probe=Probe(8)), replace(PLUS, prefix="base")):
        with pytest.raises(ValueError, match=r"is reflected, but .* is not scored beside it"):
            engine.score(HEADED, [beside, MIRRORED], WHOLE[0])
    assert_same(engine.score(HEADED, EXACT), approximate_engine("llama").score(HEADED, EXACT), 1e-12)


def test_a_prefix_from_elsewhere_needs_spans() -> None:
    engine = approximate_engine("llama")
    for lane in (MIRRORED, FROZEN, Lane(prefix="base")):
        with pytest.raises(ModelError, match="no spans say where: give both, as a plan has them"):
            engine.score(HEADED, [PLUS, lane])


def test_inplace_engines_take_no_prefix_from_elsewhere() -> None:
    message = r"'inplace' runs one lane at a time.*use 'tandem', or reuse\.policy = 'exact'"
    engine = TorchEngine(build("llama"), Full(), perturbation="inplace")
    with pytest.raises(ModelError, match=message):
        engine.score(HEADED, [PLUS, MIRRORED], WHOLE[0])
    with pytest.raises(ModelError, match=message):
        TorchEngine(build("llama"), Full(), perturbation="inplace", reuse=Reflected())


EXACTLY_SHARED: dict[str, Trainable] = {
    "activated": Activated(2, 4.0),
    "upper layers": Layers(1, 2),
    "upper adapters": Lora(2, 4.0, first=1),
    "blocks": Layers(0, 2, block=1),
}


@pytest.mark.parametrize("kind", EXACTLY_SHARED)
def test_what_is_shared_exactly_is_not_approximated(kind: str) -> None:
    engine = TorchEngine(build("llama"), EXACTLY_SHARED[kind])
    with pytest.raises(
        ModelError, match="leaves tokens or layers alone that are shared exactly; plan with that policy"
    ):
        engine.score([Request((5, 6, 7, 8), (9,), 2)], [PLUS, MIRRORED], WHOLE[0])


APPROXIMATE: dict[str, Policy] = {
    "reflected": Reflected(),
    "transported": Transported(),
    "frozen": Debiased(inner=Frozen()),
}


@pytest.mark.parametrize("kind", EXACTLY_SHARED)
@pytest.mark.parametrize("policy", APPROXIMATE)
def test_approximate_policies_are_refused_where_an_exact_one_shares_more(policy: str, kind: str) -> None:
    better = "activated" if kind == "activated" else "invariant"
    with pytest.raises(ModelError, match=rf"\[reuse\] does not fit \[trainable\]: .*{policy}.*use policy = '{better}'"):
        TorchEngine(build("llama"), EXACTLY_SHARED[kind], reuse=APPROXIMATE[policy])


def test_spans_reach_no_further_than_the_model() -> None:
    engine = approximate_engine("llama")
    assert_same(engine.score(HEADED, FEW, Spans("prompt", 99)), engine.score(HEADED, FEW, Spans("prompt", 2)), 1e-12)


def test_frozen_cautions_whoever_chooses_it() -> None:
    with pytest.warns(UserWarning, match="drops the gradient through the prefix, at any eps"):
        TorchEngine(build("llama"), Full(), reuse=Frozen())
