"""Every architecture whose weights walk in place, or are updated and reset."""

from copy import deepcopy
from typing import Any, cast

import pytest
import torch
from architectures import (
    GROUPED,
    REQUESTS,
    TARGETS,
    bits,
    build,
    deviation,
    direction,
    engine_of,
    in_lane,
    naive,
    shifted,
)
from every_architecture import (
    DTYPES,
    GRID_LANES,
    TERMS,
    TOLERANCE,
    VISIBLE,
    architectures,
    assert_lanes,
    few,
    merged,
    untouched,
)
from tensors import same
from transformers import AutoModelForCausalLM, MixtralConfig

from twinpass.core import BASE
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import UnsupportedModuleError
from twinpass.model.trainable import Full, Lora
from twinpass.perturb.noise import Distribution

ROUNDED = 1e-5
"""Weights that differ by one quantum (2**-51) may flip a rounding in norms that compute in float32 all the same."""


def test_all_weights_of_a_mixture_of_experts_are_trained_in_float32_in_place() -> None:
    config = MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = cast(Any, AutoModelForCausalLM).from_config(config, dtype=torch.float32).eval()
    for dtype in (torch.bfloat16, torch.float32):
        with pytest.raises(UnsupportedModuleError, match=r"'inplace', which takes float32 weights \(model\.dtype\)"):
            TorchEngine(deepcopy(model).to(dtype), Full())
    engine = TorchEngine(model, Full(), perturbation="inplace")
    assert engine.packs
    assert_lanes(engine, deepcopy(model), GRID_LANES, TOLERANCE[torch.float32])


@pytest.mark.table
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("noise", ["binomial", "rademacher"])
@architectures
def test_inplace_lanes(name: str, noise: Distribution, dtype: torch.dtype) -> None:
    model = build(name, dtype)
    quantum = 4 * {torch.float64: 2.0**-53, torch.float32: 2.0**-24}[dtype]
    rounded = {path: torch.round(p.detach() / quantum) * quantum for path, p in model.named_parameters()}
    engine = engine_of(name, model, perturbation="inplace", noise=noise)
    assert same(rounded, dict(model.named_parameters()))
    plain = deepcopy(model)
    with untouched(model):
        assert_lanes(engine, plain, GRID_LANES, TOLERANCE[dtype])
        engine.settle()


@few
def test_inplace_update(name: str) -> None:
    model = build(name)
    engine = engine_of(name, model, perturbation="inplace")
    plain = shifted(model, engine.parameters, TERMS, "binomial")
    engine.score(REQUESTS, GRID_LANES[:1])
    engine.update(TERMS)
    updated = engine.score(REQUESTS, GRID_LANES[1:2]).values[0]
    engine.settle()
    for path, parameter in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(path), parameter, rtol=0, atol=1e-14)
    settled = deepcopy(model)
    assert deviation(updated, naive(in_lane(settled, engine.parameters, GRID_LANES[1], "binomial"), REQUESTS)) < 1e-9
    assert_lanes(engine, settled, GRID_LANES)


def test_inplace_lora() -> None:
    model = build("gpt2")
    engine = engine_of("gpt2", model, Lora(4, 8.0, TARGETS["gpt2"]), perturbation="inplace")
    engine.update(TERMS)
    engine.settle()
    adapters = {parameter: tensor.clone() for parameter, tensor in engine.parameters.items()}
    with untouched(model):
        scores = engine.score(REQUESTS, GRID_LANES)
    for lane, values in zip(GRID_LANES, scores.values, strict=True):
        seed = lane.probe.seed if lane.probe else 0
        moved = {p: t + lane.scale * direction(p, t, seed, "binomial") for p, t in adapters.items()}
        assert deviation(values, naive(merged(model, moved, scale=2.0), REQUESTS)) < 1e-9


@pytest.mark.table
@pytest.mark.parametrize(("perturbation", "tolerance"), [("tandem", 1e-9), ("inplace", ROUNDED)])
@few
def test_update_and_reset(name: str, perturbation: str, tolerance: float) -> None:
    model = build(name)
    checkpoint = bits(model)
    engine = engine_of(name, model, perturbation=perturbation, reload=lambda: checkpoint)
    start = bits(model)
    plain = shifted(model, engine.parameters, TERMS, "binomial")
    engine.update(TERMS)
    scores = engine.score(REQUESTS, [BASE]).values[0]
    assert deviation(scores, naive(plain, REQUESTS)) < tolerance
    assert deviation(scores, naive(build(name), REQUESTS)) > VISIBLE
    engine.reset()
    assert same(start, bits(model))
    assert deviation(engine.score(REQUESTS, [BASE]).values[0], naive(build(name), REQUESTS)) < tolerance
