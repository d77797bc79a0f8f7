"""What lies below the perturbed layers is shared, and lasts until an update touches it."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from architectures import (
    ARCHITECTURES,
    REQUESTS,
    TARGETS,
    build,
    deviation,
    engine_of,
    naive,
    shifted,
)
from architectures import in_lane as moved
from reusing import (
    TERMS,
    TWO,
    Apart,
    architectures,
    assert_same,
    packed,
)
from torch import Tensor
from transformers import AutoModelForCausalLM

from twinpass.core import BASE, Probe, Term
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.model.causal import CausalModel
from twinpass.model.trainable import Layers, Lora


@packed
def test_adapters_on_upper_layers_share_the_lower_ones(name: str) -> None:
    trainable = Lora(4, 8.0, tuple(t for t in TARGETS[name] if t != "lm_head"), first=1)
    engine, plain = TorchEngine(build(name), trainable), Apart(build(name), trainable)
    assert {CausalModel(build(name)).layer_of(path) for path in engine.parameters} == {1}
    for one in (engine, plain):
        one.update(TERMS)
    works = [engine.score(REQUESTS, TWO) for _ in range(2)]
    assert_same(works[1], plain.score(REQUESTS, TWO))
    assert works[1].work.reused["invariant"] * 2 == works[1].work.demand - works[1].work.reused["shared_prefix"]


@pytest.mark.table
@pytest.mark.parametrize("perturbation", ["tandem", "inplace"])
@architectures
def test_blocks_move_their_own_layers_only(name: str, perturbation: str) -> None:
    model = build(name)
    engine = engine_of(name, model, Layers(0, 2, block=1), perturbation=perturbation)
    causal = CausalModel(model)
    for block in (0, 1, 0):
        names = [path for path in engine.parameters if causal.layer_of(path) == 1 - block]
        assert 0 < len(names) < len(engine.parameters)
        lanes = [replace(lane, probe=Probe(7, block), eps=2**-4) for lane in TWO]
        scores = engine.score(REQUESTS, [*lanes, BASE])
        engine.settle()
        for lane, values in zip([*lanes, BASE], scores.values, strict=True):
            assert deviation(values, naive(moved(model, names, lane, "binomial"), REQUESTS)) < 1e-8
        expected = shifted(model, names, [Term(3, 0.125)], "binomial")
        engine.update([Term(3, 0.125, block)])
        engine.settle()
        for path, parameter in expected.named_parameters():
            torch.testing.assert_close(model.get_parameter(path), parameter, rtol=0, atol=1e-12)


def test_layers_that_cannot_run_apart_share_prefixes_only() -> None:
    """Layer 1 also reads what layer 0 returned, past the hidden states that are handed on."""
    model, seen = build("llama"), list[Tensor]()
    lower, upper = model.get_submodule("model.layers").children()
    lower.register_forward_hook(lambda module, args, y: seen.append(y))
    upper.get_submodule("mlp").register_forward_hook(lambda module, args, y: y + torch.tanh(seen.pop()))
    with pytest.warns(UserWarning, match=r"layers of LlamaForCausalLM cannot run apart .*reuse.policy is 'exact'"):
        engine = TorchEngine(model, Layers(1, 2))
    works = [engine.score(REQUESTS, [*TWO, BASE]) for _ in range(2)]
    assert works[1].work.reused.keys() == {"shared_prefix"}
    assert deviation(works[1].values[2], naive(model, REQUESTS)) < 1e-9


def test_an_update_invalidates_what_it_touches_and_nothing_else() -> None:
    """Four layers, of which the upper two take turns: block 0 is layer 3, block 1 is layer 2."""
    config = ARCHITECTURES["llama"]()
    config.num_hidden_layers, config.layer_types = 4, None
    model = cast(Any, AutoModelForCausalLM).from_config(config, dtype=torch.float64)
    engine = TorchEngine(model, Layers(2, 4, block=1))
    lanes = [[replace(lane, probe=Probe(7, block)) for lane in TWO] for block in (0, 1)]
    rows = len({request.inputs[:n] for request in REQUESTS for n in range(1, len(request.inputs) + 1)})

    def layers_run(block: int) -> float:
        return engine.score(REQUESTS, lanes[block]).work.computed / rows

    assert [layers_run(0), layers_run(0)] == [3 + 2, 2]  # below layer 3 once, layer 3 under both signs
    assert [layers_run(1), layers_run(1)] == [2 + 2 * 2, 2 * 2]
    engine.update([Term(3, 0.1, 0)])
    assert [layers_run(0), layers_run(1)] == [2, 4]
    engine.update([Term(4, 0.1, 1)])
    assert [layers_run(1), layers_run(0), layers_run(0)] == [4, 3 + 2, 2]
    top = [path for path in engine.parameters if ".3." in path]
    plain = [naive(moved(model, top, lane, "binomial"), REQUESTS) for lane in TWO]
    for lane, expected in zip(engine.score(REQUESTS, lanes[0]).values, plain, strict=True):
        assert deviation(lane, expected) < 1e-9
