"""Work is counted as the layers ran it, and every token-layer of the demand has one source."""

import pytest
from architectures import (
    LANES,
    build,
)
from reusing import (
    PROMPTS,
    TERMS,
    TWO,
    packed,
    rows_by_layer,
    trainables,
)

from twinpass.core import BASE, Request
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.model.causal import CausalModel
from twinpass.model.trainable import Activated, Full, Layers
from twinpass.reuse import exact


@pytest.mark.table
@pytest.mark.parametrize("chunk_rows", [5, 4096])
@pytest.mark.parametrize("kind", ["lora", "layers", "activated"])
@packed
def test_work_is_what_the_layers_ran(name: str, kind: str, chunk_rows: int) -> None:
    model = build(name)
    trainable, requests = trainables(name)[kind]
    engine = TorchEngine(model, trainable, chunk_rows=chunk_rows)
    depth = CausalModel(model).depth
    for lanes in (TWO, TWO, [BASE], LANES):
        with rows_by_layer(model) as counts:
            work = engine.score(requests, lanes).work
        assert sum(counts) == work.computed
        assert work.demand == depth * len(lanes) * sum(len(request.inputs) for request in requests)
        assert work.demand == work.computed + sum(work.reused.values())
        assert all(count >= 0 for count in work.reused.values())


def test_sources() -> None:
    """A prompt of 6 shared by two options of 2 and 3 tokens, two lanes, two layers."""
    requests = [Request((1, 2, 3, 4, 5, 6), (7, 8), 4), Request((1, 2, 3, 4, 5, 6), (9, 8, 7), 4)]
    works = {}
    for kind, trainable in (("full", Full()), ("layers", Layers(1, 2)), ("activated", Activated(2, 4.0))):
        engine = TorchEngine(build("llama"), trainable)
        works[kind] = [engine.score(requests, TWO).work for _ in range(2)]
    demand, distinct, before = 2 * 2 * 15, 9, 4
    assert [work.demand for work in works["full"]] == [demand, demand]
    assert [work.computed for work in works["full"]] == [2 * 2 * distinct] * 2
    assert [work.reused for work in works["full"]] == [{"shared_prefix": demand - 2 * 2 * distinct}] * 2
    assert [work.computed for work in works["layers"]] == [3 * distinct, 2 * distinct]
    assert [work.reused["invariant"] for work in works["layers"]] == [distinct, 2 * distinct]
    after = 2 * 2 * (distinct - before)
    assert [work.computed for work in works["activated"]] == [after + 2 * before, after]
    assert [work.reused["activated"] for work in works["activated"]] == [2 * before, 4 * before]


def test_exact_shares_the_activated_prompt_within_a_step_only() -> None:
    engine = TorchEngine(build("llama"), Activated(2, 4.0), reuse=exact.Exact())
    works = [engine.score(PROMPTS, TWO).work for _ in range(3)]
    assert works[0] == works[1] == works[2]
    assert works[0].reused["activated"] > 0
    assert engine.score(PROMPTS, TWO).cache.held == 0


def test_base_lane_keeps_what_prompts_share_until_an_update() -> None:
    head = tuple(range(1, 21))
    blocks = [[Request((*head, i, j), (5,)) for j in range(3)] for i in range(30, 33)]
    engine = TorchEngine(build("llama"), Full())
    computed = [engine.score(block, [BASE]).work.computed for block in blocks]
    assert computed[1] == computed[2] == computed[0] - 2 * 20
    engine.update(TERMS)
    assert engine.score(blocks[0], [BASE]).work.computed == computed[0]
