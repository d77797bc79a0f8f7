"""What a run leaves behind is a model again: its folder loads, in transformers, PEFT and twinpass, to the scores that were trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Glm4MoeConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from twinpass.config.compose import build
from twinpass.config.load import load_config
from twinpass.core import BASE, Request, Term
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import ModelError, StorageError
from twinpass.model.load import load
from twinpass.model.save import new
from twinpass.model.trainable import Full, Layers, Lora, Pattern, Trainable
from twinpass.train.folder import save_weights
from twinpass.use.export import merged

REQUEST = Request((1, 7, 3, 9, 5), (2, 4, 6))
ATTENTION = ("q_proj", "o_proj")


def own(model: PreTrainedModel) -> np.ndarray:
    """The model's own log-probabilities of the request's completion."""
    ids = torch.tensor([REQUEST.prompt + REQUEST.completion])
    with torch.no_grad():
        logits = model.train(False)(input_ids=ids).logits[0, len(REQUEST.prompt) - 1 : -1]
    scores = logits.double().log_softmax(-1)[range(len(REQUEST.completion)), REQUEST.completion]
    return np.asarray(scores)


def trained(model: PreTrainedModel, trainable: Trainable, folder: Path, **options: Any) -> np.ndarray:
    """Scores after some updates, which are saved in ``folder``."""
    before = own(model)
    engine = TorchEngine(model, trainable, seed=5, tokenizer=tiny.tokenizer(), **options)
    engine.update([Term(k, 0.02) for k in range(3)])
    scores = np.asarray(engine.score([REQUEST], [BASE]).values[0][0])
    assert np.abs(scores - before).max() > 1e-2
    engine.save(folder)
    return scores


def test_a_trained_model_is_a_model_path(tmp_path: Path) -> None:
    run = build(load_config(tiny.config(tmp_path, trainable={"kind": "full"})))
    run.engine.update([Term(k, 0.02) for k in range(3)])
    scores = np.asarray(run.engine.score([REQUEST], [BASE]).values[0][0])
    folder = run.engine.save(tmp_path / "run")
    assert (folder / "generation_config.json").is_file()
    model, tokenizer = load(str(folder))
    assert tokenizer("a fine film")["input_ids"] == tiny.tokenizer()("a fine film")["input_ids"]
    assert np.abs(own(model) - scores).max() < 1e-5
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]


def shared() -> PreTrainedModel:
    """A model two of whose layers have one parameter, which its architecture knows nothing of."""
    model = tiny.model()
    layers: Any = model.get_submodule("model.layers")
    layers[1].mlp.down_proj.weight = layers[0].mlp.down_proj.weight
    return model


def test_shared_parameters_are_saved(tmp_path: Path) -> None:
    scores = trained(shared(), Full(), tmp_path)
    loaded, _ = load(str(tmp_path / "model"))
    assert np.abs(own(loaded) - scores).max() < 1e-5
    held = load_file(tmp_path / "model" / "model.safetensors")
    assert torch.equal(held["model.layers.0.mlp.down_proj.weight"], held["model.layers.1.mlp.down_proj.weight"])
    assert "lm_head.weight" not in held  # tied by its architecture


@pytest.mark.parametrize(("make", "targets"), [(shared, ("down_proj",)), (tiny.model, ("lm_head", "q_proj"))])
def test_an_adapter_is_merged_into_what_its_module_computes_alone(
    make: Callable[[], PreTrainedModel], targets: tuple[str, ...], tmp_path: Path
) -> None:
    """A weight that another module has as well, such as the embeddings of a tied head, stays what it is there."""
    scores = trained(make(), Lora(rank=2, targets=targets), tmp_path)
    model = merged(make(), tmp_path / "adapter")
    assert np.abs(own(model) - scores).max() < 1e-5
    model.save_pretrained(tmp_path / "merged")
    tiny.tokenizer().save_pretrained(tmp_path / "merged")
    loaded, _ = load(str(tmp_path / "merged"))
    assert np.abs(own(loaded) - scores).max() < 1e-5


def test_what_cannot_be_written_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    engine = TorchEngine(tiny.model(), Full())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        engine.save(tmp_path / "file")
    with pytest.raises(StorageError, match=r"file cannot be written: Not a directory; a file is in the way"):
        save_weights(engine, tmp_path / "file")
    with (
        pytest.raises(ModelError, match=r"cannot be written: of wood \(ValueError\).*replay RUN"),
        new(tmp_path / "new"),
    ):
        raise ValueError("of wood")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_saving_again_replaces_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model-00001-of-00002.safetensors").write_text("old")
    trained(tiny.model(), Full(), tmp_path)
    assert "model-00001-of-00002.safetensors" not in {file.name for file in (tmp_path / "model").iterdir()}


def seeing() -> PreTrainedModel:
    """A language model with a vision tower of as many layers, whose modules have the same names."""
    sizes: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    text: dict[str, Any] = sizes | {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    vision: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    special: dict[str, Any] = {
        "mm_tokens_per_image": 4,
        "image_token_index": 94,
        "boi_token_index": 95,
        "eoi_token_index": 96,
    }
    torch.manual_seed(1)
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, **special))


@pytest.mark.parametrize(
    "trainable", [Full(), Layers(0, 2), Layers(1, 2), Pattern(r"o_proj|out_proj|norm")], ids=lambda t: type(t).__name__
)
def test_of_a_multimodal_model_the_language_model_is_trained(trainable: Trainable, tmp_path: Path) -> None:
    model = seeing()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores = trained(model, trainable, tmp_path)
    loaded, _ = load(str(tmp_path / "model"))
    assert isinstance(loaded, Gemma3ForConditionalGeneration)
    assert np.abs(own(loaded) - scores).max() < 1e-5
    moved = {name for name, tensor in loaded.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all("language_model" in name or name == "lm_head.weight" for name in moved)


def test_adapters_of_a_multimodal_model_are_those_of_its_language_model(tmp_path: Path) -> None:
    scores = trained(seeing(), Lora(rank=2, targets=("q_proj", "v_proj")), tmp_path)
    names = set(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert len(names) == 2 * 2 * 2
    assert all("language_model" in name for name in names)
    loaded = PeftModel.from_pretrained(seeing(), str(tmp_path / "adapter"))
    assert np.abs(own(loaded) - scores).max() < 1e-5
    assert not [name for name, _ in loaded.named_modules() if "vision" in name and "lora_A" in name]


def mixtures() -> dict[str, Any]:
    sizes: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
    }
    sizes |= {"max_position_embeddings": 64, "initializer_range": 0.2, "num_experts_per_tok": 2}
    shared_experts: dict[str, Any] = sizes | {
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
    }
    grouped: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
    latent: dict[str, Any] = {
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    }
    return {
        "deepseek_v3": DeepseekV3Config(**shared_experts, **latent),
        "glm4_moe": Glm4MoeConfig(**shared_experts, **grouped),
        "qwen3_moe": Qwen3MoeConfig(**sizes, **grouped, num_experts=4, mlp_only_layers=[0]),
    }


@pytest.mark.parametrize("name", list(mixtures()))
def test_adapters_that_peft_would_lose_are_refused_and_others_are_kept(name: str, tmp_path: Path) -> None:
    def make() -> PreTrainedModel:
        torch.manual_seed(1)
        auto: Any = AutoModelForCausalLM
        built: PreTrainedModel = auto.from_config(mixtures()[name])
        built.train(False)
        return built

    with pytest.raises(ModelError, match="would be lost when it is loaded"):
        TorchEngine(make(), Lora(targets=("gate_proj", "up_proj", "down_proj")))
    attention = ("q_b_proj", "o_proj") if name == "deepseek_v3" else ATTENTION
    scores = trained(make(), Lora(rank=2, targets=attention), tmp_path)
    assert np.abs(own(PeftModel.from_pretrained(make(), str(tmp_path / "adapter"))) - scores).max() < 1e-5
