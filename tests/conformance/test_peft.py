"""The real PEFT loads what was trained, to the same logits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from architectures import deviation, naive
from peft import PeftModel
from transformers import (
    BartConfig,
    BartForCausalLM,
    GitConfig,
    GitForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
)

from twinpass.core import BASE, Request, Score, Term
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import ModelError
from twinpass.model.causal import CausalModel
from twinpass.model.trainable import Activated, Full, Lora, Trainable

TARGETS = {
    "llama": ("q_proj", "v_proj", "down_proj"),
    "qwen2": ("q_proj", "k_proj"),
    "gpt2": ("c_attn", "c_proj"),
    "opt": ("q_proj", "fc1"),
}
INVOCATION = (3, 9)
PROMPT = (1, 7, 3, 9, 5, 3, 9)
REQUEST = Request(PROMPT, (2, 4, 6), active_from=5)


def peft_scores(model: PreTrainedModel, adapter: Path, request: Request) -> Score:
    """What PEFT makes of a saved adapter."""
    loaded = PeftModel.from_pretrained(model, str(adapter)).eval()
    with torch.no_grad():
        logits = loaded(input_ids=torch.tensor([request.prompt + request.completion])).logits[0]
    logprobs = torch.log_softmax(logits[len(request.prompt) - 1 : -1], -1)
    return np.asarray(logprobs[range(len(request.completion)), request.completion].double())


def train(model: PreTrainedModel, trainable: Trainable, folder: Path) -> Score:
    """Move the adapter far from its start, save it, and return its scores."""
    engine = TorchEngine(model, trainable, seed=5, invocation=INVOCATION)
    before = engine.score([REQUEST], [BASE]).values[0]
    engine.update([Term(k, 0.05) for k in range(3)])
    (trained,) = engine.score([REQUEST], [BASE]).values[0]
    assert deviation([trained], before) > 1e-2
    engine.save(folder)
    return trained


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("name", TARGETS)
def test_lora(name: str, first: int, tmp_path: Path) -> None:
    trained = train(tiny.model(name), Lora(rank=4, alpha=8.0, targets=TARGETS[name], first=first), tmp_path)
    assert deviation([trained], [peft_scores(tiny.model(name), tmp_path / "adapter", REQUEST)]) < 1e-4


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_by_default(name: str, tmp_path: Path) -> None:
    trained = train(tiny.model(name), Lora(), tmp_path)
    assert deviation([trained], [peft_scores(tiny.model(name), tmp_path / "adapter", REQUEST)]) < 1e-4


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_activated(name: str, tmp_path: Path) -> None:
    """PEFT finds the activation point by itself: the last place where the invocation tokens stand."""
    trained = train(tiny.model(name), Activated(rank=4, alpha=8.0, targets=TARGETS[name]), tmp_path)
    assert deviation([trained], [peft_scores(tiny.model(name), tmp_path / "adapter", REQUEST)]) < 1e-4
    (tmp_path / "lora").mkdir()
    whole = train(tiny.model(name), Lora(rank=4, alpha=8.0, targets=TARGETS[name]), tmp_path / "lora")
    assert deviation([trained], [whole]) > 1e-2


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox"])
def test_activated_on_what_writes(name: str, tmp_path: Path) -> None:
    """What options are learned by where nothing is said; OPT's fc2, which reads rows without their batch, is left out: PEFT fails on it."""
    trained = train(tiny.model(name), Activated(rank=4, alpha=8.0, targets="outputs", first=-20), tmp_path)
    assert deviation([trained], [peft_scores(tiny.model(name), tmp_path / "adapter", REQUEST)]) < 1e-4


def test_an_activated_adapter_that_peft_fails_on_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"PEFT fails on .*\['fc2'\] of OPTForCausalLM.*leave them out of trainable"):
        train(tiny.model("opt"), Activated(rank=4, targets=("out_proj", "fc2")), tmp_path)
    with pytest.raises(IndexError, match="mask"):
        peft_scores(tiny.model("opt"), tmp_path / "adapter", REQUEST)


def test_activated_adapters_are_saved_with_their_tokens_or_not_at_all(tmp_path: Path) -> None:
    engine = TorchEngine(tiny.model(), Activated(2, 4.0))
    with pytest.raises(ModelError, match="invocation tokens"):
        engine.save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:MptForCausalLM does not give the same scores when its batch is packed")
def test_an_activated_adapter_that_peft_would_leave_idle_is_warned_of(tmp_path: Path) -> None:
    def make() -> PreTrainedModel:
        torch.manual_seed(1)
        config = MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=97, max_seq_len=64)
        model: PreTrainedModel = MptForCausalLM(config).train(False)
        return model

    with pytest.warns(UserWarning, match=r"MptForCausalLM act on no token.*set trainable\.kind = 'lora'"):
        trained = train(make(), Activated(rank=4, targets=("out_proj",)), tmp_path)
    (tmp_path / "whole").mkdir()
    whole = train(make(), Lora(rank=4), tmp_path / "whole")
    (plain,) = naive(make(), [REQUEST])
    assert deviation([plain], [peft_scores(make(), tmp_path / "adapter", REQUEST)]) < 1e-4
    assert deviation([trained], [plain]) > 1e-2
    assert deviation([whole], [peft_scores(make(), tmp_path / "whole" / "adapter", REQUEST)]) < 1e-4


def bart() -> PreTrainedModel:
    """A decoder whose layers have attention to an encoder that is not there."""
    sizes: dict[str, Any] = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
    return BartForCausalLM(
        BartConfig(**sizes, vocab_size=97, max_position_embeddings=64, init_std=0.25, pad_token_id=1)
    )


def git() -> PreTrainedModel:
    """A decoder beside an encoder of images that has as many layers."""
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    images = {**sizes, "image_size": 14, "patch_size": 14}
    return GitForCausalLM(
        GitConfig(**sizes, vision_config=images, vocab_size=97, max_position_embeddings=64, initializer_range=0.25)
    )


@pytest.mark.filterwarnings("ignore:.* does not give the same scores when its batch is packed")
@pytest.mark.parametrize("kind", [Lora(rank=4), Activated(rank=4, alpha=8.0, targets="outputs", first=-20)])
@pytest.mark.parametrize(("make", "idle"), [(bart, "encoder_attn"), (git, "image_encoder")])
def test_parts_that_texts_do_not_run_through_stay_as_they_are(
    make: Callable[[], PreTrainedModel], idle: str, kind: Trainable, tmp_path: Path
) -> None:
    def again() -> PreTrainedModel:
        torch.manual_seed(1)
        model: PreTrainedModel = make().train(False)
        return model

    trained = train(again(), kind, tmp_path)
    assert deviation([trained], [peft_scores(again(), tmp_path / "adapter", REQUEST)]) < 1e-4
    weights = Full().attach(again(), 0).parameters
    assert any(idle in name for name, _ in again().named_parameters())
    assert not [name for name in weights if idle in name]
    assert idle not in CausalModel(again()).layers_path


def test_an_encoder_s_states_that_are_read_are_part_of_the_model() -> None:
    """It goes by what runs, not by names alone."""
    model = tiny.model("llama")
    for layer in model.model.layers:
        layer.cross_attn = layer.self_attn
        del layer.self_attn
        layer.self_attn = layer.cross_attn
    assert CausalModel(model).reads_text("model.layers.0.cross_attn.q_proj")
