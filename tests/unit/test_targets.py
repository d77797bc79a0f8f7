"""Modules that adapters sit on where they are not named, in every architecture."""

from typing import Any

import pytest
import torch
from architectures import ADDING, ARCHITECTURES, FALLBACK, WRITERS, build
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
)

from twinpass.errors import ModelError
from twinpass.model.trainable import Activated, Informed, Lora

ALL = {**ARCHITECTURES, **ADDING, **FALLBACK}
ATTENTION = {
    "gpt2": ("c_attn", "c_proj"),
    "opt": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "gpt_neox": ("query_key_value", "dense"),
    "bloom": ("query_key_value", "dense"),
    "minicpm3": ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
}
"""What attention's projections are called, where not as usual."""
RESHAPED = {"fc1", "fc2"}
"""OPT's, on which PEFT activates nothing."""

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


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


@pytest.mark.parametrize("name", ALL)
def test_the_usual_names_stand_for_what_a_model_calls_otherwise(name: str) -> None:
    """The defaults of adapters train on every architecture: gpt2's c_attn is what q_proj, k_proj and v_proj are elsewhere."""
    attention = Lora(rank=2).attach(build(name), 0).adapter
    writers = Informed(layers=1).attach(build(name), 0).adapter
    assert attention is not None
    assert writers is not None
    assert set(attention.targets) == set(ATTENTION.get(name, ("q_proj", "k_proj", "v_proj", "o_proj")))
    assert set(writers.targets) == set(WRITERS.get(name, ("o_proj", "down_proj"))) - RESHAPED


@pytest.mark.parametrize("targets", ["outputs", "all-linear"])
def test_an_activated_adapter_sits_where_peft_can_activate_it(targets: Any) -> None:
    """OPT's MLP reads tokens without the batch that they come in."""
    trained = Activated(targets=targets).attach(build("opt"), 0, (3,))
    whole = Lora(targets=targets).attach(build("opt"), 0)
    assert trained.adapter is not None
    assert whole.adapter is not None
    assert set(whole.adapter.targets) - set(trained.adapter.targets) == RESHAPED & set(whole.adapter.targets)
    assert "fc2" in whole.adapter.targets


def test_a_decoder_of_modernbert_has_writers() -> None:
    own: dict[str, Any] = {key: SMALL[key] for key in SMALL if key != "num_key_value_heads"}
    model = ModernBertDecoderForCausalLM(ModernBertDecoderConfig(**own, intermediate_size=48, pad_token_id=0))
    trained = Lora(targets="outputs").attach(model, 0)
    assert trained.adapter is not None
    assert len(trained.adapter.modules) == 4


def test_names_that_are_given_stand_for_themselves() -> None:
    with pytest.raises(
        ModelError, match=r"\['q_proj'\] match no linear layer .*has \['c_attn', .*name some of those, or 'all-linear'"
    ):
        Lora(targets=("q_proj",)).attach(build("gpt2"), 0)
    with pytest.raises(ModelError, match=r"\['o_proj'\] match no linear layer"):
        Informed(targets=("o_proj",)).attach(build("gpt2"), 0)


def test_a_type_of_model_that_has_experts_is_taken_for_one_without() -> None:
    """PEFT goes by the type, and loses an adapter of a dense DeepSeek-V3 as well."""
    own: dict[str, Any] = {**SMALL, "num_key_value_heads": 4, "intermediate_size": 48, "first_k_dense_replace": 2}
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**own))
    assert not [name for name, weight in model.named_parameters() if weight.dim() == 3]
    trained = Lora(targets="outputs").attach(model, 0)
    assert trained.adapter is not None
    assert trained.adapter.targets == ("o_proj",)


def test_a_child_of_a_linear_layer_that_computes_the_same_is_one() -> None:
    """Falcon's layers have a forward of their own, for the order of a sum."""
    model: Any = FalconForCausalLM(
        FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    )
    assert type(model.get_submodule("transformer.h.0.self_attention.dense")).forward is not nn.Linear.forward
    for lora in (Lora(), Lora(targets="outputs"), Lora(targets="all-linear")):
        trained = lora.attach(model, 0)
        assert trained.adapter is not None
        assert "dense" in trained.adapter.targets


def test_a_router_that_returns_more_than_a_product_gets_no_adapter() -> None:
    own: dict[str, Any] = {**SMALL, "intermediate_size": 48, "intermediate_size_mlp": 48, "num_local_experts": 2}
    model = Llama4ForCausalLM(Llama4TextConfig(**own, head_dim=8))
    assert isinstance(model.model.layers[0].feed_forward.router, nn.Linear)
    trained = Lora(targets="all-linear").attach(model, 0)
    assert trained.adapter is not None
    assert "router" not in trained.adapter.targets


def test_convolutions_are_no_experts() -> None:
    """Their weights have three dimensions, too; models whose state is recurrent have them."""
    kinds = ["linear_attention", "full_attention"]
    torch.manual_seed(1)
    model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**SMALL, head_dim=8, intermediate_size=48, layer_types=kinds))
    trained = Lora(targets=("o_proj", "down_proj")).attach(model, 0)
    assert trained.adapter is not None
    assert len(trained.adapter.modules) == 3
    config = LoraConfig(target_modules=["o_proj", "down_proj"])
    adapted = {name for name, module in get_peft_model(model, config).named_modules() if hasattr(module, "lora_A")}
    assert {f"base_model.model.{path}" for path in trained.adapter.modules} == adapted


def test_what_kernels_of_mamba_read_past_its_module_is_left_out_and_refused_by_name() -> None:
    """PEFT refuses to load an adapter of it, after all the training. Without attention, the defaults stand for what is left."""
    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4))
    for lora in (Lora(targets="all-linear"), Lora(), Activated(targets="outputs", first=-20)):
        trained = lora.attach(model, 0)
        assert trained.adapter is not None
        assert trained.adapter.targets == ("in_proj", "x_proj")
    with pytest.raises(
        ModelError,
        match=r"targets \['out_proj'\]: PEFT refuses adapters there in models of the type mamba.*such as in_proj",
    ):
        Lora(targets=("in_proj", "out_proj")).attach(model, 0)
    with pytest.raises(ValueError, match="out_proj"):
        get_peft_model(model, LoraConfig(target_modules=["out_proj"]))


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
