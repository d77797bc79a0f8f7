"""Every architecture under every kind of training: the engine's scores are those of a plain loop over plain models."""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from types import ModuleType
from typing import Any, cast

import pytest
import torch
from architectures import (
    ARCHITECTURES,
    FALLBACK,
    FEW,
    GROUPED,
    LANES,
    REQUESTS,
    TARGETS,
    WINDOW,
    bits,
    build,
    deviation,
    direction,
    engine_of,
    in_lane,
    naive,
    shifted,
)
from tiers import some_fast
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, MixtralConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from twinpass.core import BASE, Lane, Probe, Request, Term
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.embedded.linear import lanes
from twinpass.engine.embedded.scoring import attention, passes
from twinpass.errors import ModelError, UnsupportedModuleError
from twinpass.model.trainable import Full, Layers, Lora, Pattern
from twinpass.perturb.noise import DISTRIBUTIONS, Distribution

NAMES = [*ARCHITECTURES, *FALLBACK]
DTYPES = [torch.float64, torch.float32]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-4}
VISIBLE = 1e-4
"""The least change of some score that leaving one parameter out must make, 100 000 times the tolerance."""

ROUNDED = 1e-5
"""Weights that differ by one quantum (2**-51) may flip a rounding in norms that compute in float32 all the same."""

BLIND = {"opt": r"\.k_proj\.bias$"}
"""Parameters without any effect: a key bias adds the same number to all of a query's scores; softmax takes it out."""

TERMS = [Term(3, 0.125), Term(2**62 + 1, -0.07), Term(3, 0.01)]
GRID_LANES = [Lane(Probe(7), 1, 2**-4), Lane(Probe(7), -1, 2**-4), BASE, Lane(Probe(9), -1, 2**-5)]

architectures = pytest.mark.parametrize("name", NAMES)
few = pytest.mark.parametrize("name", some_fast(NAMES, FEW))


def assert_lanes(engine: TorchEngine, model: PreTrainedModel, tested: Sequence[Lane], tolerance: float = 1e-9) -> None:
    """Every lane scores like a copy of ``model`` whose weights are really those of the lane."""
    scores = engine.score(REQUESTS, tested)
    for lane, values in zip(tested, scores.values, strict=True):
        plain = in_lane(model, engine.parameters, lane, engine.noise)
        assert deviation(values, naive(plain, REQUESTS)) < tolerance


def same(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@contextmanager
def untouched(model: PreTrainedModel) -> Iterator[None]:
    """The block leaves no trace in the model's weights, configuration and modules."""
    before, attention_before, config = bits(model), model.config._attn_implementation, model.config.to_dict()
    yield
    assert same(before, bits(model))
    assert model.config._attn_implementation == attention_before
    assert model.config.to_dict() == config
    assert [path for path, module in model.named_modules() if "forward" in module.__dict__] == []


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


def merged(model: PreTrainedModel, adapters: Mapping[str, Tensor], scale: float) -> PreTrainedModel:
    """A copy of the model with ``W + scale B A`` in place of ``W``."""
    copy = deepcopy(model)
    for path in [name.removesuffix(".lora_A.weight") for name in adapters if name.endswith(".lora_A.weight")]:
        change = scale * adapters[f"{path}.lora_B.weight"] @ adapters[f"{path}.lora_A.weight"]
        module = copy.get_submodule(path)
        weight = module.get_parameter("weight").detach()
        weight += change.t() if isinstance(module, Conv1D) else change
    return copy


@architectures
def test_lora_lanes(name: str) -> None:
    model = build(name)
    engine = engine_of(name, model, Lora(rank=4, alpha=8.0, targets=TARGETS[name]))
    targets = [path for path, _ in model.named_modules() if path.rsplit(".", 1)[-1] in TARGETS[name]]
    assert list(engine.parameters) == [f"{path}.lora_{side}.weight" for path in targets for side in "AB"]
    adapters = {parameter: tensor.clone() for parameter, tensor in engine.parameters.items()}
    assert all(bool(tensor.any()) == ("lora_A" in parameter) for parameter, tensor in adapters.items())
    with untouched(model):
        assert deviation(engine.score(REQUESTS, [BASE]).values[0], naive(model, REQUESTS)) < 1e-9
        engine.update(TERMS)
        scores = engine.score(REQUESTS, LANES)
    for lane, values in zip(LANES, scores.values, strict=True):
        terms = TERMS + ([] if lane.probe is None else [Term(lane.probe.seed, lane.scale)])
        moved = {
            parameter: tensor + sum(term.scale * direction(parameter, tensor, term.seed, "binomial") for term in terms)
            for parameter, tensor in adapters.items()
        }
        assert deviation(values, naive(merged(model, moved, scale=2.0), REQUESTS)) < 1e-9
    engine.reset()
    assert same(adapters, engine.parameters)


CHOICES = {
    "layers": r"\.1\.",
    "biases": r"bias$",
    "norms": r"norm|ln_",
    "tables": r"embed|wte|wpe",
    "weights": r"\.0\..*(q_proj|attn|query).*weight$",
}
WITHOUT_BIAS = {"llama", "qwen3", "mistral", "gemma2", "gemma3"}


@pytest.mark.table
@pytest.mark.parametrize(
    ("name", "choice"),
    [(name, choice) for name in NAMES for choice in CHOICES if choice != "biases" or name not in WITHOUT_BIAS],
)
def test_chosen_parameters_only(name: str, choice: str) -> None:
    model, pattern = build(name), CHOICES[choice]
    engine = engine_of(name, model, Layers(1, 2) if choice == "layers" else Pattern(pattern))
    assert list(engine.parameters) == [
        parameter for parameter, _ in model.named_parameters() if re.search(pattern, parameter)
    ]
    assert 0 < len(engine.parameters) < len(list(model.parameters()))
    assert_lanes(engine, model, LANES)


@pytest.mark.table
@pytest.mark.parametrize("pattern", ["lm_head", "embed_tokens|wte"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gemma3", "gpt2", "opt"])
def test_tied_table_by_either_name(name: str, pattern: str) -> None:
    model = build(name)
    engine = engine_of(name, model, Pattern(pattern))
    table = model.get_parameter("lm_head.weight")
    assert [tensor.data_ptr() for tensor in engine.parameters.values()] == [table.data_ptr()]
    assert table is cast(Any, model).get_input_embeddings().weight
    assert_lanes(engine, model, LANES)


@pytest.mark.parametrize("pattern", ["lm_head", "embed_tokens"])
def test_untied_tables_are_apart(pattern: str) -> None:
    model = build("llama-untied")
    engine = engine_of("llama-untied", model, Pattern(pattern))
    assert [pattern in parameter for parameter in engine.parameters] == [True]
    assert_lanes(engine, model, LANES)


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
