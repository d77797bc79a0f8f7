"""How a GGUF file says that positions turn queries and keys, which transformers takes over in part only.

What is not said in the file is llama.cpp's default, and what cannot be taken over is refused.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from twinpass.errors import ModelError
from twinpass.model.headers import Fact, facts_of

_BASE = 10000.0
"""The frequency base where a file names none."""

_LOCAL: Mapping[str, float] = {"gemma3_text": 10000.0}
"""Of models whose local layers turn by a base of their own and are never scaled: that base, where a file names none."""

_FREQUENCIES = "rope_freqs.weight"
_LLAMA3: Mapping[str, Any] = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""The one rule by which converters write a table of frequencies: Llama 3.1's."""

_BETAS = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}


def take_over(config: PreTrainedConfig, file: Path, tensors: Mapping[str, int]) -> None:
    """Set the configuration's rotary parameters as the file, which holds ``tensors``, has them.

    Raises:
        ModelError: they cannot be expressed for this model.
    """
    said = facts_of(file)
    given = getattr(config, "rope_parameters", None)
    kind, factor = _scaling(said)
    plain = kind in ("none", "linear") and _FREQUENCIES not in tensors
    if isinstance(given, dict) and config.model_type in _LOCAL and plain:
        config.rope_parameters = _by_layer(config.model_type, said, factor, file)
        return
    if not isinstance(given, dict) or "rope_theta" not in given:
        if kind != "none" or _FREQUENCIES in tensors:
            raise _refused(file, f"of a {config.model_type} are scaled")
        own = [part["rope_theta"] for part in (given or {}).values() if isinstance(part, dict) and "rope_theta" in part]
        if own and (base := _of(said, "freq_base", _BASE)) not in own:
            raise _refused(file, f"go by a base of {base:g}, and in the model by {own}")
        return
    base = _base(said, "freq_base", _BASE, factor, file)
    if kind == "none" and _FREQUENCIES in tensors:
        found: dict[str, Any] = _by_table(file, base)
    elif kind in ("none", "linear", "yarn") and _FREQUENCIES not in tensors:
        found = {"rope_type": "default"} if kind == "none" else {"rope_type": kind, "factor": factor}
    else:
        raise _refused(file, f"are scaled by {kind!r}")
    if kind == "yarn":
        original = _of(said, "scaling.original_context_length", None)
        if original is None or factor is None:
            raise _refused(file, "are scaled by 'yarn', from a context whose length it does not say")
        found |= {"original_max_position_embeddings": int(original)}
        found |= {
            there: float(value)
            for here, there in _BETAS.items()
            if (value := _of(said, f"scaling.{here}", None)) is not None
        }
        if (attention := _of(said, "scaling.attn_factor", None)) is not None:
            found["attention_factor"] = float(attention) * (0.1 * math.log(float(factor)) + 1.0)
    kept = {key: given[key] for key in ("partial_rotary_factor",) if key in given}
    config.rope_parameters = {**kept, "rope_theta": base, **found}


def _by_layer(model_type: str, said: Mapping[str, Fact], factor: float | None, file: Path) -> dict[str, dict[str, Any]]:
    """The rotary parameters of global layers and of local ones."""
    scaled = {"rope_type": "default"} if factor is None else {"rope_type": "linear", "factor": factor}
    return {
        "full_attention": {"rope_theta": _base(said, "freq_base", _BASE, factor, file), **scaled},
        "sliding_attention": {
            "rope_theta": _base(said, "freq_base_swa", _LOCAL[model_type], factor, file),
            "rope_type": "default",
        },
    }


def _base(said: Mapping[str, Fact], key: str, otherwise: float, factor: float | None, file: Path) -> float:
    base = float(_of(said, key, otherwise))
    if not 0 < base < math.inf or not 0 < (factor or 1.0) < math.inf:
        raise _refused(file, f"go by a base of {base:g} and a factor of {factor or 1.0:g}")
    return base


def require_turned(model: PreTrainedModel, file: Path) -> None:
    """Refuse a model that turns more or fewer numbers of a head than the file says.

    Raises:
        ModelError: it does.
    """
    turned = _of(facts_of(file), "dimension_count", None)
    own = {2 * buffer.numel() for name, buffer in model.named_buffers() if name.endswith("inv_freq")}
    if turned is not None and own and int(turned) not in own:
        raise _refused(file, f"turn {turned} numbers of a head, and in the model {max(own)}")


def _scaling(said: Mapping[str, Fact]) -> tuple[str, float | None]:
    """The kind of scaling, and by how much; old converters know the linear one alone."""
    factor = _of(said, "scaling.factor", _of(said, "scale_linear", None))
    kind = str(_of(said, "scaling.type", "none" if factor is None else "linear"))
    if factor is None or float(factor) in (0.0, 1.0):
        return ("none" if kind == "linear" else kind), None
    return kind, float(factor)


def _of(said: Mapping[str, Fact], key: str, otherwise: Any) -> Any:
    return said.get(f"{said.get('general.architecture')}.rope.{key}", otherwise)


def _by_table(file: Path, base: float) -> dict[str, Any]:
    """Llama 3.1's parameters, of which converters write what every frequency is divided by."""
    from gguf import GGUFReader

    (held,) = [tensor for tensor in GGUFReader(file).tensors if tensor.name == _FREQUENCIES]
    table = torch.tensor(held.data, dtype=torch.float64).flatten()
    factor = round(float(table.max()), 3)
    if factor == 1.0 and bool((table == 1).all()):
        return {"rope_type": "default"}
    if not torch.allclose(table, _llama3(len(table), base, factor), rtol=1e-4):
        raise _refused(file, f"go by a table of frequencies ({_FREQUENCIES}) that is not Llama 3's")
    return {**_LLAMA3, "factor": factor}


def _llama3(half: int, base: float, factor: float) -> Tensor:
    """What frequencies are divided by: 1 for short waves, ``factor`` for long ones, and a blend between."""
    waves = 2 * math.pi * base ** (torch.arange(half, dtype=torch.float64) / half)
    low, high, length = (
        float(_LLAMA3[key]) for key in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    share = ((length / waves - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - share) / factor + share)


def _refused(file: Path, what: str) -> ModelError:
    return ModelError(
        f"model.path: positions in {file} {what}, which cannot be taken over from a GGUF file exactly; get the model as safetensors"
    )
