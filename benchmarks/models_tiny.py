"""A tiny random model of every type that transformers writes text with, and a tokenizer and rows for it."""

from typing import Any, cast

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TYPES: tuple[str, ...] = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
"""What the installed transformers knows."""

VOCABULARY, WINDOW, PAD = 97, 8, 1
WORDS = ("[UNK]", "[PAD]", "Review:", "Sentiment:", "bad", "good", "film", "fine", "dull", "a", "great", "story")

SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("emb_dim", "input_embedding_size", "output_embedding_size", "lru_width"), 32),
    **dict.fromkeys(("embedding_dim", "attention_hidden_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "attention_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "swa_num_key_value_heads", "num_kv_heads", "num_query_groups"), 2),
    **dict.fromkeys(("head_dim", "swa_head_dim", "kv_channels", "dim_head", "d_head", "global_head_dim"), 8),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size"), 48),
    **dict.fromkeys(("n_inner", "dff", "dim_ff", "d_inner", "intermediate_size_mlp", "dense_intermediate_size"), 48),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"), VOCABULARY),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "model_max_length"), 64),
    **dict.fromkeys(("original_max_position_embeddings", "context_length", "max_target_positions"), 64),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "window_size", "attention_window_size"), WINDOW),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("shared_intermediate_size", "shared_experts_intermediate_size"), 16),
    **dict.fromkeys(("moe_shared_expert_intermediate_size",), 16),
    **dict.fromkeys(("kv_lora_rank", "o_lora_rank"), 16),
    "q_lora_rank": 12,
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim", "index_head_dim"), 8),
    "qk_rope_head_dim": 4,
    "index_n_heads": 2,
    "index_topk": 64,
    **dict.fromkeys(("linear_num_key_heads", "linear_num_heads"), 2),
    "linear_num_value_heads": 4,
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 8),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 8),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 4),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "mamba_ngroups"), 1),
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 4,
    "rotary_dim": 4,
    "query_pre_attn_scalar": 10,
    "initializer_range": 0.25,
    "init_std": 0.25,
    **dict.fromkeys(("depth", "num_mem_blocks"), 2),
    **dict.fromkeys(("image_size", "patch_size"), 14),
    "out_hidden_size": 32,
    "gated_norm_rank": 4,
    "router_hidden_size": 16,
    "adapter_rank": 4,
    "d_rel": 4,
    "rel_extent": 16,
    "keep_window_size": 64,
}
"""Sizes by the names that configurations have for them."""

SLIDING = ["sliding_attention", "full_attention"]
LINEAR = ["linear_attention", "full_attention"]

FOUR = {"num_hidden_layers": 4, "layer_types": [*SLIDING, *SLIDING]}
MIXED = {"num_hidden_layers": 2, "layer_types": LINEAR}
ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}

BY_TYPE: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "layer_types": SLIDING,
        "rope_parameters": {each: {"rope_type": "default", "rope_theta": 10000.0} for each in SLIDING},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3_text": {"layer_types": SLIDING},
    "gemma3n_text": {**FOUR, "num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0]},
    "gemma4_text": {**FOUR, "num_kv_shared_layers": 2, "head_dim": 8, "global_head_dim": 8},
    "gemma4_unified_text": {**FOUR, "num_kv_shared_layers": 2, "head_dim": 8, "global_head_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 8, **ROTARY},
    "hunyuan_v1_moe": {"head_dim": 8, **ROTARY},
    "ministral": {**ROTARY, "head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "longcat_flash": {"head_dim": 4},
    "zaya": {"num_experts_per_tok": 1},
    "mamba2": {"num_heads": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "qwen3_5_text": MIXED,
    "qwen3_5_moe_text": MIXED,
    "qwen3_next": MIXED,
    "olmo_hybrid": MIXED,
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"]},
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_hidden_layers": 2},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "minimax": {"layer_types": LINEAR},
    "reformer": {
        "axial_pos_embds": False,
        "attn_layers": ["local", "lsh"],
        "attention_head_size": 8,
        "feed_forward_size": 48,
        "num_buckets": 2,
    },
    "xmod": {"default_language": "en_XX"},
}
"""What a type needs besides."""


def config_of(kind: str) -> PreTrainedConfig:
    """A small configuration of a model type."""
    return _small(CONFIG_MAPPING[kind])


def _small(found: Any) -> PreTrainedConfig:
    kind, sample = found.model_type, found()
    own = sample.to_dict()
    known = {name for name in set(own) | set(sample.attribute_map) if own.get(name, 0) is not None}
    values = {name: value for name, value in SMALL.items() if name in known}
    if "kv_lora_rank" in known:
        values["num_key_value_heads"] = 4
        values.pop("head_dim", None)
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if token in own:
            values[token] = {"pad_token_id": PAD}.get(token, 0) if own[token] is not None else None
    if "is_decoder" in own:  # or it would read what comes later, too
        values["is_decoder"] = True
    for name, part in getattr(found, "sub_configs", {}).items():
        given = getattr(sample, name, None)
        if given is not None:
            values[name] = _small(type(given) if hasattr(type(given), "model_type") else part).to_dict()
    return cast(PreTrainedConfig, found(**values | BY_TYPE.get(kind, {})))


def build(kind: str) -> PreTrainedModel:
    """A random model in float32 whose norms and biases are random too."""
    auto: Any = AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model: Any = auto.from_config(config_of(kind), dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.detach().add_(torch.randn_like(parameter), alpha=0.25)
    return cast(PreTrainedModel, model.eval())


def tokenizer() -> PreTrainedTokenizerFast:
    """Words between spaces."""
    words = (*WORDS, *(f"word{i}" for i in range(len(WORDS), VOCABULARY)))
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    make: Any = PreTrainedTokenizerFast
    return cast(PreTrainedTokenizerFast, make(tokenizer_object=inner, unk_token="[UNK]"))


def rows(count: int) -> list[dict[str, Any]]:
    """Reviews with ``label``, and with ``answer`` to be written."""
    texts = ("a fine film", "dull story", "great story a fine film", "a dull dull film", "fine")
    found = [(text, i % 2 == 0) for i, text in enumerate(texts)]
    return [
        {"text": text, "label": int(fine), "answer": "good film" if fine else "bad story"}
        for text, fine in (found[i % len(found)] for i in range(count))
    ]
