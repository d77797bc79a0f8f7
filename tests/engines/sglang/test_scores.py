"""Real SGLang gives the embedded engine's scores, runs the rows it says, and reuses what it should; never what it must not."""

from collections.abc import Callable

import pytest
from real_sglang import ARGUMENTS, LAYERS, OPTIONS, SHOTS, SIGNS, TEXTS, TOLERANCE, Loaded, engines, requests_of, worst

from twinpass.core import BASE, Lane, Probe, Term
from twinpass.engine.sglang.calls import Call, reply_of
from twinpass.engine.sglang.server import Server, Variant
from twinpass.errors import EngineError, ModelError


@pytest.mark.parametrize("first", [0, LAYERS // 2])
@pytest.mark.parametrize("activated", [False, True])
def test_scores_equal_the_embedded_engines(loaded: Loaded, server: Server, activated: bool, first: int) -> None:
    embedded, sglang = engines(loaded, server, activated=activated, first=first)
    requests, lanes = requests_of(loaded[1]), [*SIGNS, BASE]
    before = sglang.score(requests, lanes).values
    assert worst(before[:1], before[1:2]) > 0.1, "the signs must differ, or nothing is tested"
    assert worst(before, embedded.score(requests, lanes).values) < TOLERANCE
    for step in range(2):
        for engine in (embedded, sglang):
            engine.update([Term(5 + step, 2e-2)])
        after = sglang.score(requests, lanes).values
        assert worst(after, before) > 0.01
        assert worst(after, embedded.score(requests, lanes).values) < TOLERANCE
        before = after
    for engine in (embedded, sglang):
        engine.reset()
    assert worst(sglang.score(requests, lanes).values, embedded.score(requests, lanes).values) < TOLERANCE
    sglang.reset()


def test_activated_lanes_run_their_suffix_rows_only(loaded: Loaded, server: Server, rows: Callable[[], int]) -> None:
    _, sglang = engines(loaded, server, activated=True)
    requests = requests_of(loaded[1], SHOTS)
    prompts = {request.prompt: request.active_from for request in requests}
    suffixes = sum(len(prompt) - start for prompt, start in prompts.items())
    extra = len(prompts) * (len(loaded[1](OPTIONS[2])["input_ids"]) - 1)  # rows of the option of several tokens
    extra += suffixes  # which SGLang runs apart from the options of one token
    first = sglang.score(requests, SIGNS)
    assert rows() * sglang.layers == first.work.computed
    sglang.update([Term(1, 1e-3)])
    second = sglang.score(requests, SIGNS)
    ran = rows()
    assert ran * sglang.layers == second.work.computed
    assert ran == 2 * (suffixes + extra)
    assert second.work.hit_rate > 0.9
    assert second.work.reused == {"activated": second.work.demand - second.work.computed}
    sglang.reset()


def test_lanes_share_prefixes_of_their_own(loaded: Loaded, server: Server, rows: Callable[[], int]) -> None:
    _, sglang = engines(loaded, server, activated=False)
    requests = requests_of(loaded[1], SHOTS)
    work = sglang.score(requests, SIGNS).work
    assert rows() * sglang.layers == work.computed
    shared = len(loaded[1](SHOTS)["input_ids"])
    longest = max(len(request.inputs) for request in requests)
    assert work.computed < 2 * sglang.layers * (shared + len(TEXTS) * 2 * (longest - shared))
    again = sglang.score(requests, SIGNS).work
    assert again.computed < work.computed, "the same adapters find their prefixes again"
    sglang.update([Term(1, 1e-3)])
    assert sglang.score(requests, SIGNS).work.computed == work.computed, "new weights must find nothing"
    sglang.reset()


def test_suffixes_never_enter_the_base_models_cache(loaded: Loaded, server: Server) -> None:
    embedded, sglang = engines(loaded, server, activated=True)
    requests = requests_of(loaded[1], "Never seen before.\n")
    sglang.score(requests, SIGNS)
    call = Call(requests[0].prompt, len(requests[0].prompt) - 1, None, [requests[0].completion[0]])
    (meta,) = server.score([call], [Variant()])
    assert meta["cached_tokens"] <= requests[0].active_from, "the suffix was found, which only adapters have run"
    (base,) = embedded.score(requests[:1], [BASE]).values[0]
    assert abs(reply_of(call, meta).last[requests[0].completion[0]] - base[0]) < TOLERANCE
    sglang.reset()


def test_prefixes_that_are_not_there_run_under_the_base_model(loaded: Loaded, server: Server) -> None:
    """None of them was sent ahead, so that rows of one request run partly without the adapter."""
    embedded, sglang = engines(loaded, server, activated=True)
    requests = requests_of(loaded[1], "A beginning that no cache holds.\n")
    sglang._sent |= {request.prompt[: request.active_from] for request in requests}
    scores = sglang.score(requests, SIGNS)
    assert worst(scores.values, embedded.score(requests, SIGNS).values) < TOLERANCE
    assert not sglang._sent, "what was not found is sent next time"
    again = sglang.score(requests, SIGNS)
    assert again.work.computed < scores.work.computed
    assert worst(again.values, scores.values) < TOLERANCE
    sglang.reset()


def test_prefixes_that_were_evicted_are_found_missing_and_sent_again(loaded: Loaded, server: Server) -> None:
    embedded, sglang = engines(loaded, server, activated=True)
    requests = requests_of(loaded[1], SHOTS)
    expected = embedded.score(requests, SIGNS).values
    sglang.score(requests, SIGNS)
    sent = set(sglang._sent)
    others = [tuple((7 * i + 13 * k) % 40000 + 100 for i in range(900)) for k in range(10)]
    for other in others:
        server.fill([other], [Variant()])
    assert worst(sglang.score(requests, SIGNS).values, expected) < TOLERANCE
    assert sglang._sent < sent, "nothing was evicted"
    assert worst(sglang.score(requests, SIGNS).values, expected) < TOLERANCE
    assert sglang._sent == sent
    sglang.reset()


@pytest.mark.parametrize("sent", [True, False])
def test_more_lanes_than_slots(loaded: Loaded, server: Server, sent: bool) -> None:
    """As many as adaptive eps tries at once; also where prefixes are missing, so that each batch needs a slot without adapter."""
    embedded, sglang = engines(loaded, server, activated=True)
    lanes = [Lane(Probe(seed), sign, 2e-2) for seed in range(5) for sign in (1, -1)]
    requests = requests_of(loaded[1], "" if sent else "Many lanes and a beginning that no cache holds.\n")[:4]
    if not sent:
        sglang._sent |= {request.prompt[: request.active_from] for request in requests}
    assert len(lanes) > ARGUMENTS["max_loras_per_batch"] == server.slots
    assert worst(sglang.score(requests, lanes).values, embedded.score(requests, lanes).values) < TOLERANCE
    sglang.reset()


def test_what_sglang_cannot_do_is_refused(loaded: Loaded, server: Server) -> None:
    _, sglang = engines(loaded, server, activated=True)
    requests = requests_of(loaded[1])
    with pytest.raises(ModelError, match="exact"):
        sglang.score(requests, [Lane(Probe(1), 1, 0.1, prefix="base")])
    with pytest.raises(ModelError, match="twice"):
        sglang.score(requests, [SIGNS[0], SIGNS[0]])
    with pytest.raises(EngineError, match="refuses an adapter"):
        server.load("odd", {}, {"peft_type": "LORA", "r": 4096, "lora_alpha": 1, "target_modules": ["q_proj"]})
