"""Start SGLang for a model, and an engine on it."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinpass.engine.embedded.identity import hash_of, require_finite
from twinpass.engine.embedded.load import DTYPES, locate
from twinpass.engine.embedded.trainable import Lora, Trainable
from twinpass.engine.sglang.engine import SglangEngine
from twinpass.engine.sglang.server import CPU, Server
from twinpass.errors import ModelError
from twinpass.perturb.noise import Distribution

FIXED: Mapping[str, str] = MappingProxyType(
    {
        "model_path": "use [model] path",
        "tokenizer_path": "use [model] path",
        "dtype": "use [model] dtype",
        "device": "use [engine] device",
        "page_size": "use [reuse] page_size",
        "max_total_tokens": "use [reuse] budget, in bytes of keys and values",
        "disable_radix_cache": "prefixes come from it",
        "enable_lora": "lanes are adapters",
        "lora_paths": "lanes are adapters, loaded as they are needed",
        "lora_target_modules": "use [trainable] targets",
        "max_lora_rank": "use [trainable] rank",
        "max_loras_per_batch": "it follows from [estimator] probes",
        "skip_server_warmup": "twinpass makes its own checks",
    }
)
"""Arguments of ``sgl.Engine`` that follow from the rest of a configuration."""


def launch(
    path: str,
    dtype: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    trainable: Trainable,
    *,
    invocation: tuple[int, ...],
    seed: int,
    noise: Distribution,
    lanes: int,
    budget: int,
    page_size: int,
    device: Literal["cpu", "cuda"],
    arguments: Mapping[str, Any],
) -> SglangEngine:
    """An SGLang engine on ``model``, which was loaded from ``path``; its weights are given up here, as SGLang has its own.

    ``lanes`` are scored together, and ``budget`` is the size of SGLang's cache in bytes.

    Raises:
        ModelError: the model or the trainable weights cannot be used.
        EngineError: SGLang cannot be started.
    """
    if not isinstance(trainable, Lora):
        raise ModelError(
            'SGLang trains adapters here: use trainable.kind "lora" or "activated", or the embedded engine'
        )
    require_finite(model)
    base_hash = hash_of(model)
    trained = trainable.attach(model, seed, invocation)
    source = locate(path)
    exported = Path(tempfile.mkdtemp(prefix="twinpass-model-")) if source.gguf else None
    if exported is not None:
        model.save_pretrained(exported)
        tokenizer.save_pretrained(exported)
    cast(Any, model).to("meta")
    chosen = {
        "device": device,
        **(CPU if device == "cpu" else {}),
        "dtype": dtype,
        "page_size": page_size,
        "max_total_tokens": max(1, budget // slot_bytes(model, dtype)),
        "max_lora_rank": trainable.rank,
        "lora_target_modules": list(trainable.targets),
        "max_loras_per_batch": lanes + 2,
        **arguments,
    }
    try:
        server = Server(str(exported or source.folder), chosen)
    finally:
        if exported is not None:
            shutil.rmtree(exported)  # SGLang has read it
    resolution = float(torch.finfo(DTYPES[dtype]).eps)
    return SglangEngine(model, base_hash, trained, server, noise=noise, resolution=resolution)


def slot_bytes(model: PreTrainedModel, dtype: str) -> int:
    """Bytes of one token's keys and values in all layers."""
    config: Any = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width) * DTYPES[dtype].itemsize
