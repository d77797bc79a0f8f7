"""Modules that adapters sit on where they are not named, in every architecture."""

import pytest
import torch
from architectures import ADDING, ARCHITECTURES, FALLBACK, WRITERS, build
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from twinpass.errors import ModelError
from twinpass.model.trainable import Activated, Lora

ALL = {**ARCHITECTURES, **ADDING, **FALLBACK}


@pytest.mark.parametrize("name", ALL)
def test_every_architecture_has_them_in_its_uppermost_layer(name: str) -> None:
    model = build(name)
    expected = WRITERS.get(name, ("o_proj", "down_proj"))
    trained = Lora(targets="outputs", first=-1).attach(model, 0)
    assert trained.adapter is not None
    assert set(trained.adapter.targets) == set(expected)
    depth = model.config.num_hidden_layers
    assert trained.adapter.layers == range(depth - 1, depth)
    assert {path.rsplit(".", 1)[-1] for path in trained.adapter.modules} == set(expected)
    assert len(trained.adapter.modules) == 2


def test_all_layers_have_them_where_there_are_fewer_than_asked_for() -> None:
    model = build("llama")
    trained = Activated(targets="outputs", first=-16).attach(model, 0, (3,))
    assert trained.adapter is not None
    assert trained.adapter.layers is None
    assert len(trained.adapter.modules) == 2 * model.config.num_hidden_layers


@pytest.mark.parametrize("name", ALL)
def test_all_that_is_linear_is_what_peft_calls_so(name: str) -> None:
    model = build(name)
    trained = Lora(targets="all-linear").attach(model, 0)
    assert trained.adapter is not None
    config = LoraConfig(target_modules="all-linear", r=8, fan_in_fan_out=trained.adapter.fan_in_fan_out)
    peft = get_peft_model(model, config)
    adapted = {
        path.removeprefix("base_model.model.") for path, module in peft.named_modules() if hasattr(module, "lora_A")
    }
    assert trained.adapter.modules.keys() == adapted


def test_names_that_peft_takes_for_experts_are_left_out() -> None:
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    trained = Lora(targets="outputs").attach(MixtralForCausalLM(config), 0)
    assert trained.adapter is not None
    assert trained.adapter.targets == ("o_proj",)


def test_a_model_without_any_says_what_it_has() -> None:
    model = build("llama")
    for layer in model.model.layers:
        layer.self_attn.o_proj = Other(layer.self_attn.o_proj.weight)
        layer.mlp.down_proj = Other(layer.mlp.down_proj.weight)
    with pytest.raises(
        ModelError, match=r"outputs.*has none of o_proj, down_proj, .*; name the targets: it has .*'q_proj'"
    ):
        Lora(targets="outputs").attach(model, 0)


class Other(nn.Module):
    """A layer of no kind that can have an adapter."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T
