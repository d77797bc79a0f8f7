"""Every architecture with a part of it trained: LoRA, chosen parameters, tables that are tied or not."""

import re
from typing import Any, cast

import pytest
from architectures import (
    LANES,
    REQUESTS,
    TARGETS,
    build,
    deviation,
    direction,
    engine_of,
    naive,
)
from every_architecture import NAMES, TERMS, architectures, assert_lanes, merged, untouched
from tensors import same

from twinpass.core import BASE, Term
from twinpass.model.trainable import Layers, Lora, Pattern


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
