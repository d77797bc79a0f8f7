"""Tiny random models of every architecture family, and the plain computations that the engine is measured against."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import numba
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    Glm4Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MiniCPM3Config,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from twinpass.core import BASE, Lane, Probe, Request, Score, Term
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.model.trainable import Full, Trainable
from twinpass.perturb.noise import Distribution, reference

numba.get_num_threads()  # starts Numba's threads, which sets the number of PyTorch's as well
torch.set_num_threads(1)  # a second one gains nothing here, and on a busy machine each product waits 16 ms for it

VOCABULARY = 97
WINDOW = 8
"""The sliding window of those that have one; the longest request of :data:`REQUESTS` is three times as long."""

SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SPECIAL: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
DENSE: dict[str, Any] = {**SIZES, **SPECIAL, "intermediate_size": 48, "initializer_range": 0.25}
GROUPED: dict[str, Any] = {**DENSE, "num_key_value_heads": 2, "max_position_embeddings": 64}
NARROW: dict[str, Any] = {"head_dim": 8, "global_head_dim": 8}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
}  # fmt: skip
EAGER: dict[str, Any] = {"attn_implementation": "eager"}
PARTLY_ROTATED = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}

ARCHITECTURES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "llama-untied": lambda: LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
    "qwen2": lambda: Qwen2Config(**GROUPED, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**GROUPED, head_dim=12, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**GROUPED, sliding_window=WINDOW),
    "gemma2": lambda: Gemma2Config(
        **GROUPED,
        head_dim=12,
        query_pre_attn_scalar=10,
        sliding_window=WINDOW,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=5.0,
        **EAGER,  # transformers 5.17 would pick sdpa, which leaves the soft cap out
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **GROUPED, head_dim=8, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt2": lambda: GPT2Config(
        **SPECIAL, vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.25
    ),
    "opt": lambda: OPTConfig(
        **SIZES, bos_token_id=0, eos_token_id=0, pad_token_id=1, ffn_dim=48, max_position_embeddings=64, init_std=0.25
    ),
    "gpt_neox": lambda: GPTNeoXConfig(
        **DENSE, max_position_embeddings=64, rope_parameters=PARTLY_ROTATED, tie_word_embeddings=False
    ),
}
"""Models that the packed pass runs."""

ADDING: dict[str, Callable[[], PretrainedConfig]] = {
    "olmo2": lambda: Olmo2Config(**GROUPED),
    "glm4": lambda: Glm4Config(**GROUPED, head_dim=8),
    "granite": lambda: GraniteConfig(**GROUPED, residual_multiplier=0.2, attention_multiplier=0.3, logits_scaling=2.0),
    "minicpm3": lambda: MiniCPM3Config(
        **DENSE, max_position_embeddings=64, **LATENT, v_head_dim=8, scale_emb=2, scale_depth=0.4, dim_model_base=16
    ),
    "gemma4": lambda: Gemma4TextConfig(
        **GROUPED,
        **NARROW,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
        hidden_size_per_layer_input=0,
        num_kv_shared_layers=0,
    ),
}
"""Models whose residual stream is another: past a norm, a share of what is written, or scaled by each layer. For what goes by the stream."""

FALLBACK: dict[str, Callable[[], PretrainedConfig]] = {
    "bloom": lambda: BloomConfig(
        **SPECIAL, vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.25
    ),
}
"""Models that run by their own forward (ALiBi is no attention backend)."""

WRITERS: dict[str, tuple[str, ...]] = {
    "gpt2": ("c_proj",),
    "opt": ("out_proj", "fc2"),
    "gpt_neox": ("dense", "dense_4h_to_h"),
    "bloom": ("dense", "dense_4h_to_h"),
}
"""What writes into the residual stream, where it has other names."""

FEW = ("llama", "gpt2", "gemma2", "bloom")
"""Those that differ most: the fast tier's, where a test is about something else than architectures."""

TARGETS = {
    "llama": ("q_proj", "v_proj", "down_proj"),
    "llama-untied": ("k_proj", "up_proj", "lm_head"),
    "qwen2": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "qwen3": ("q_proj", "gate_proj"),
    "mistral": ("k_proj", "v_proj"),
    "gemma2": ("q_proj", "o_proj", "down_proj"),
    "gemma3": ("k_proj", "up_proj"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "opt": ("q_proj", "out_proj", "fc1"),
    "gpt_neox": ("query_key_value", "dense", "dense_4h_to_h"),
    "bloom": ("query_key_value", "dense_h_to_4h"),
}
"""Modules that adapters are put on, different kinds in each model."""

REQUESTS = (
    Request((5, 6, 7, 8), (9,)),
    Request((5, 6, 7, 8), (10, 11, 12)),
    Request((5, 6, 7, 8), (10, 11, 13, 14)),
    Request((5, 6, 7, 8, 10), (11, 12)),
    Request((40,), (41,)),
    Request(tuple(range(20, 42)), (3, 4, 3)),
    Request(tuple(range(20, 42)), (3, 90)),
    Request(tuple(range(20, 35)), (2,)),
    Request((5, 6, 7, 8), (9,)),
)
"""Shared prefixes, one inside another, options of one and of several tokens, a repetition, lengths from 1 to 24."""

LANES = (
    Lane(Probe(7), 1, 0.05),
    Lane(Probe(7), -1, 0.05),
    BASE,
    Lane(Probe(2**63 + 9), 1, 0.03125),
    Lane(Probe(8), -1, 0.0625),
)


def build(name: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A random model whose norms and biases are random too, so that nothing in it is 0 or 1 by habit."""
    auto: Any = AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model: Any = auto.from_config((ARCHITECTURES | FALLBACK | ADDING)[name](), dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.detach().add_(torch.randn_like(parameter), alpha=0.25)
        for buffer, tensor in model.named_buffers():
            if buffer.endswith("layer_scalar"):
                tensor.uniform_(0.4, 0.8)
    built: PreTrainedModel = model.to(dtype).eval()
    return built


def share_of(model: PreTrainedModel, path: str) -> float:
    """How much of what a module writes is in the state that leaves the last layer, by what architectures say."""
    config, layers = model.config, list(model.get_submodule(path.rsplit(".", 3)[0]).children())
    if config.model_type == "granite":
        return float(config.residual_multiplier)
    if config.model_type == "minicpm3":
        return float(config.scale_depth) / math.sqrt(config.num_hidden_layers)
    above: list[Any] = layers[int(path.rsplit(".", 3)[1]) :] if config.model_type == "gemma4_text" else []
    return math.prod([float(layer.layer_scalar) for layer in above], start=1.0)


def bits(model: PreTrainedModel) -> dict[str, Tensor]:
    """A copy of every parameter and buffer."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


class Float64Softmax(TorchFunctionMode):
    """Keep float64 where eager attention would fall to float32, so that the reference is as exact as its model."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.nn.functional.softmax and args[0].dtype is torch.float64:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


def naive(model: PreTrainedModel, requests: Sequence[Request]) -> list[Score]:
    """One sequence at a time by the model's own forward (just as it stands where the engine runs that one too)."""
    exact = nullcontext() if model.config.model_type in FALLBACK else Float64Softmax()
    scores = []
    with torch.no_grad(), exact:
        for request in requests:
            logits = model(input_ids=torch.tensor([request.inputs]), use_cache=False).logits[0]
            logprobs = torch.log_softmax(logits[len(request.prompt) - 1 :], -1).double().numpy()
            scores.append(logprobs[range(len(request.completion)), request.completion])
    return scores


def direction(name: str, tensor: Tensor, seed: int, noise: Distribution) -> Tensor:
    """``z`` of one parameter, by the definition."""
    z = torch.from_numpy(reference(seed, name, 0, tensor.numel(), noise).copy())
    return z.view(tensor.shape).to(tensor.dtype)


def shifted(
    model: PreTrainedModel, names: Iterable[str], terms: Sequence[Term], noise: Distribution
) -> PreTrainedModel:
    """A copy of the model whose weights really are ``theta + scale * z``."""
    copy = deepcopy(model)
    for name in names:
        parameter = copy.get_parameter(name).detach()
        for term in terms:
            parameter += term.scale * direction(name, parameter, term.seed, noise)
    return copy


def in_lane(model: PreTrainedModel, names: Iterable[str], lane: Lane, noise: Distribution) -> PreTrainedModel:
    """A copy of the model as ``lane`` sees it."""
    return shifted(model, names, [] if lane.probe is None else [Term(lane.probe.seed, lane.scale)], noise)


def engine_of(name: str, model: PreTrainedModel, trainable: Trainable | None = None, **options: Any) -> TorchEngine:
    with pytest.warns(UserWarning, match=f"{type(model).__name__} does not") if name in FALLBACK else nullcontext():
        return TorchEngine(model, trainable or Full(), **options)


def deviation(scores: Sequence[Score], expected: Sequence[Score]) -> float:
    assert [len(score) for score in scores] == [len(score) for score in expected]
    return max(float(np.abs(a - b).max()) for a, b in zip(scores, expected, strict=True))
