"""Forward-mode derivatives of scores equal central differences in float64, on every model that is packed, whatever is trained."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from architectures import REQUESTS, Float64Softmax, build, deviation, engine_of
from estimating import forward_mode
from reusing import TERMS, packed, trainables

from twinpass.core import BASE, Lane, Probe, Request, Score
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.embedded.scoring import linearised
from twinpass.errors import ModelError
from twinpass.model.trainable import Full, Layers, Lora

pytestmark = forward_mode

EPS = 1e-6
PROBE = Probe(7)


class Float64(Float64Softmax):
    """Keep float64 in norms too, where a central difference would see how float32 is rounded."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        narrows = func is torch.Tensor.float or (func is torch.Tensor.to and torch.float32 in args)
        if narrows and args[0].dtype is torch.float64:
            return args[0]
        if func in (torch.Tensor.matmul, torch.Tensor.__matmul__) and torch.float64 in (each.dtype for each in args):
            args = tuple(each.double() for each in args)  # positions, in the rotary tables of transformers before 5.19
        return super().__torch_function__(func, types, args, kwargs)


def linear(probe: Probe, sign: int, eps: float) -> Lane:
    return Lane(probe, sign, eps, linear=True)


def derivatives(engine: TorchEngine, requests: Sequence[Request], probe: Probe = PROBE) -> list[Score]:
    with Float64():
        up, down = engine.score(requests, [linear(probe, 1, 1.0), linear(probe, -1, 1.0)]).values
    return [(a - b) / 2 for a, b in zip(up, down, strict=True)]


def differences(engine: TorchEngine, requests: Sequence[Request], probe: Probe = PROBE) -> list[Score]:
    with Float64():
        up, down = engine.score(requests, [Lane(probe, 1, EPS), Lane(probe, -1, EPS)]).values
    return [(a - b) / (2 * EPS) for a, b in zip(up, down, strict=True)]


def size(scores: Sequence[Score]) -> float:
    return max(float(np.abs(score).max()) for score in scores)


@pytest.mark.table
@pytest.mark.parametrize("kind", ["full", "lora", "activated"])
@packed
def test_derivatives_are_central_differences(name: str, kind: str) -> None:
    trainable, requests = trainables(name)[kind]
    engine = engine_of(name, build(name), trainable)
    engine.update(TERMS)  # an adapter that has moved: at first its derivative along half of its weights is 0
    expected = differences(engine, requests)
    assert size(expected) > 0.1
    assert deviation(derivatives(engine, requests), expected) < 1e-7 * size(expected)


@pytest.mark.parametrize("block", [0, 1])
def test_a_block_of_layers_alone_moves(block: int) -> None:
    engine, probe = TorchEngine(build("gpt2"), Layers(0, 2, block=1)), Probe(7, block)
    expected = differences(engine, REQUESTS, probe)
    assert deviation(derivatives(engine, REQUESTS, probe), expected) < 1e-7 * size(expected)
    assert deviation(expected, differences(engine, REQUESTS, Probe(7, 1 - block))) > 0.1


def test_a_linear_lane_is_the_score_and_its_derivative_along_the_perturbation() -> None:
    engine = TorchEngine(build("gpt2"), Full())
    other = Probe(11)
    lanes = [linear(PROBE, 1, 0.5), linear(other, -1, 0.25), linear(PROBE, -1, 2.0)]
    with Float64():
        base = engine.score(REQUESTS, [BASE]).values[0]
        scores = engine.score(REQUESTS, lanes)
    slopes = {probe: derivatives(engine, REQUESTS, probe) for probe in (PROBE, other)}
    for lane, values in zip(lanes, scores.values, strict=True):
        assert lane.probe is not None
        line = [score + lane.scale * slope for score, slope in zip(base, slopes[lane.probe], strict=True)]
        assert deviation(values, line) < 1e-9
    assert scores.work.demand == scores.work.computed == 2 * 3 * sum(len(request.inputs) for request in REQUESTS)


def test_long_batches_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(build("gpt2"), Full())
    whole = derivatives(engine, REQUESTS)
    monkeypatch.setattr(linearised, "BATCH_TOKENS", 10)
    assert deviation(derivatives(engine, REQUESTS), whole) < 1e-9


def test_weights_that_wait_in_place_are_settled_first() -> None:
    engines = [TorchEngine(build("gpt2"), Full(), perturbation="inplace"), TorchEngine(build("gpt2"), Full())]
    for engine in engines:
        engine.update(TERMS)
    engines[0].score(REQUESTS, [Lane(PROBE, 1, 2.0**-6)])  # leaves the weights where this lane is
    found, expected = (derivatives(engine, REQUESTS) for engine in engines)
    assert deviation(found, expected) < 1e-7 * size(expected)


def test_the_model_keeps_its_attention_and_weights() -> None:
    engine = TorchEngine(build("llama"), Lora(2, 4.0))
    config: Any = engine.model.config
    before, scores = config._attn_implementation, engine.score(REQUESTS, [BASE]).values[0]
    derivatives(engine, REQUESTS)
    assert config._attn_implementation == before != "eager"
    assert deviation(engine.score(REQUESTS, [BASE]).values[0], scores) == 0.0


@pytest.mark.parametrize("beside", [BASE, Lane(PROBE, 1, 0.1), Lane(linear=True)], ids=["base", "finite", "no probe"])
def test_linear_lanes_are_scored_on_their_own(beside: Lane) -> None:
    engine = TorchEngine(build("gpt2"), Full())
    with pytest.raises(ModelError, match="linear lanes are scored on their own: score the others in another call"):
        engine.score(REQUESTS, [linear(PROBE, 1, 0.1), beside])


def test_a_model_that_cannot_be_differentiated_forward_is_refused() -> None:
    """BLOOM's activation is an autograd function without a forward-mode rule."""
    engine = engine_of("bloom", build("bloom"))
    with pytest.raises(ModelError, match=r"jvp"):
        engine.score(REQUESTS, [linear(PROBE, 1, 0.1)])
