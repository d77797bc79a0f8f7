"""Every architecture under every kind of training: the engine's scores are those of a plain loop over plain models."""

import re
import warnings
from types import ModuleType
from typing import Any, cast

import pytest
import torch
from architectures import (
    ARCHITECTURES,
    LANES,
    REQUESTS,
    WINDOW,
    build,
    deviation,
    engine_of,
    in_lane,
    naive,
)
from every_architecture import DTYPES, TOLERANCE, VISIBLE, architectures, assert_lanes, few, untouched
from torch import nn
from transformers import AutoModelForCausalLM

from twinpass.core import BASE, Request
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.embedded.linear import lanes
from twinpass.engine.embedded.scoring import attention, passes
from twinpass.errors import ModelError
from twinpass.model.trainable import Full
from twinpass.perturb.noise import DISTRIBUTIONS, Distribution

BLIND = {"opt": r"\.k_proj\.bias$"}
"""Parameters without any effect: a key bias adds the same number to all of a query's scores; softmax takes it out."""


@pytest.mark.table
@pytest.mark.parametrize("dtype", DTYPES)
@architectures
def test_base_lane_equals_the_model(name: str, dtype: torch.dtype) -> None:
    model = build(name, dtype)
    with untouched(model):
        engine = engine_of(name, model)
        scores = engine.score(REQUESTS, [BASE]).values[0]
    assert engine.packs == (name in ARCHITECTURES)
    assert deviation(scores, naive(model, REQUESTS)) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3"])
def test_sliding_window_shows(name: str) -> None:
    model, config, auto = build(name), cast(Any, ARCHITECTURES[name]()), cast(Any, AutoModelForCausalLM)
    config.sliding_window = 8 * WINDOW
    wide = auto.from_config(config, dtype=torch.float64)
    wide.load_state_dict(model.state_dict())
    for request, score, other in zip(REQUESTS, naive(model, REQUESTS), naive(wide, REQUESTS), strict=True):
        assert (deviation([score], [other]) > VISIBLE) == (len(request.inputs) > WINDOW)


def test_long_and_short_requests_keep_their_own_rotary_scaling() -> None:
    rotary = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": WINDOW}
    config = ARCHITECTURES["llama"]()
    config.rope_parameters = {**rotary, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    model = cast(Any, AutoModelForCausalLM).from_config(config, dtype=torch.float64)
    model.load_state_dict(build("llama").state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = TorchEngine(model, Full())
    assert_lanes(engine, model, LANES)


def test_dynamic_rotary_scaling_reaches_beyond_the_trained_window() -> None:
    config = ARCHITECTURES["llama"]()
    config.max_position_embeddings = WINDOW
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0}
    model = cast(Any, AutoModelForCausalLM).from_config(config, dtype=torch.float64)
    model.load_state_dict(build("llama").state_dict())
    with pytest.warns(UserWarning, match="follows the longest sequence of a batch"):
        engine = TorchEngine(model, Full())
    assert engine.window == 3 * WINDOW >= max(len(request.inputs) for request in REQUESTS) > WINDOW
    assert_lanes(engine, model, LANES)
    with pytest.raises(ModelError, match="has 25 tokens; the model's window holds 24"):
        engine.score([Request(tuple(range(24)), (1, 2))], [BASE])


@pytest.mark.table
@pytest.mark.parametrize("noise", DISTRIBUTIONS)
@architectures
def test_full_lanes(name: str, noise: Distribution) -> None:
    model = build(name)
    engine = engine_of(name, model, noise=noise)
    assert list(engine.parameters) == [parameter for parameter, _ in model.named_parameters()]
    with untouched(model):
        assert_lanes(engine, model, LANES)


@few
def test_full_lanes_in_float32(name: str) -> None:
    model = build(name, torch.float32)
    assert_lanes(engine_of(name, model), model, LANES, TOLERANCE[torch.float32])


@pytest.mark.full
@few
def test_missing_any_parameter_would_show(name: str) -> None:
    model, lane = build(name), LANES[0]
    names = list(engine_of(name, model).parameters)
    perturbed = in_lane(model, names, lane, "binomial")
    whole = naive(perturbed, REQUESTS)
    blind = []
    for parameter in names:
        tensor = perturbed.get_parameter(parameter).detach()
        kept = tensor.clone()
        tensor.copy_(model.get_parameter(parameter).detach())
        if deviation(naive(perturbed, REQUESTS), whole) < VISIBLE:
            blind.append(parameter)
        tensor.copy_(kept)
    assert blind == [parameter for parameter in names if re.search(BLIND.get(name, "(?!)"), parameter)]


@pytest.mark.table
@pytest.mark.parametrize("where", ["get_input_embeddings", "get_output_embeddings"])
@few
def test_an_error_midway_leaves_no_trace(name: str, where: str) -> None:
    model = build(name)
    engine = engine_of(name, model)
    module: nn.Module = getattr(model, where)()

    def fail(*_: object) -> None:
        raise RuntimeError("midway")

    handle = module.register_forward_hook(fail)
    with untouched(model):
        with pytest.raises(RuntimeError, match="midway"):
            engine.score(REQUESTS, LANES)
        handle.remove()
        assert_lanes(engine, model, LANES)


@pytest.mark.table
@pytest.mark.parametrize(
    ("module", "limit", "value"),
    [
        (passes, "LOGITS_BYTES", 1),
        (passes, "LOGITS_BYTES", 4 * 97 * len(LANES) * 3),
        (lanes, "TILE", 1),
        (lanes, "TILE", 200),
        (attention, "BUCKET_ELEMENTS", 1),
    ],
)
@few
def test_any_split(name: str, module: ModuleType, limit: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name)
    engine = engine_of(name, model)
    whole = engine.score(REQUESTS, LANES).values
    monkeypatch.setattr(module, limit, value)
    for lane, expected in zip(engine.score(REQUESTS, LANES).values, whole, strict=True):
        assert deviation(lane, expected) < 1e-9


@pytest.mark.table
@pytest.mark.parametrize("chunk_rows", [1, 30, 110])
@few
def test_any_chunk(name: str, chunk_rows: int) -> None:
    model = build(name)
    whole = engine_of(name, model).score(REQUESTS, LANES)
    cut = engine_of(name, model, chunk_rows=chunk_rows).score(REQUESTS, LANES)
    assert cut.work == whole.work
    for lane, expected in zip(cut.values, whole.values, strict=True):
        assert deviation(lane, expected) < 1e-9


@few
def test_order_and_company_do_not_matter(name: str) -> None:
    model = build(name)
    engine = engine_of(name, model)
    whole = engine.score(REQUESTS, LANES).values
    backwards = engine.score(REQUESTS[::-1], LANES[::-1]).values
    for lane, reverse in zip(whole, backwards[::-1], strict=True):
        assert deviation(lane, reverse[::-1]) < 1e-9
    for i, request in enumerate(REQUESTS):
        assert deviation([engine.score([request], LANES[:1]).values[0][0]], [whole[0][i]]) < 1e-9
