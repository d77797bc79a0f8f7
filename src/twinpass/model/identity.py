"""What makes a checkpoint the same, and fit to be used."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from twinpass.errors import ModelError
from twinpass.perturb.layout import flat_view


def digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of values as JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def require_language_model(model: object) -> None:
    """Refuse what is no causal language model by itself: another object, one that was compiled, a model with PEFT's adapters in it, quantised weights.

    Raises:
        ModelError: saying what it is, and what to give.
    """
    if _holds_adapters(model):
        raise ModelError(
            f"model: this {type(model).__name__} holds adapters of PEFT, and what is trained beside them could not be told apart from them; "
            "give the base model, or add them to its weights first (merge_and_unload of PEFT)"
        )
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise ModelError(
            "model: it is compiled by torch.compile, and what is trained runs its modules one by one, with other products; "
            "give the model as it was before that, load it anew if need be, and compile what comes of it"
        )
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"model: expected a causal language model of transformers, got {_called(model)}; "
            "give what AutoModelForCausalLM.from_pretrained or twinpass.load_model returns"
        )
    if not model.can_generate() or model.config.is_encoder_decoder:
        raise ModelError(
            f"model: {type(model).__name__} does not write text from left to right; load the checkpoint with AutoModelForCausalLM, "
            "whatever the task: options are compared as texts"
        )
    if getattr(model, "is_quantized", False):
        raise ModelError(
            f"model: the weights of this {type(model).__name__} are quantised, and are multiplied as they are; load it without quantization_config"
        )


def _holds_adapters(model: object) -> bool:
    """Whether PEFT has wrapped the model, or some of its modules, by the names of its classes: it need not be installed."""
    modules = [model, *(model.modules() if isinstance(model, nn.Module) else ())]
    names = (kind for module in modules for kind in type(module).__mro__)
    return any(kind.__name__ in ("PeftModel", "BaseTunerLayer") for kind in names)


def _called(model: object) -> str:
    return f"the text {model!r:.40}" if isinstance(model, str) else f"a {type(model).__name__}"


def require_finite(model: PreTrainedModel) -> None:
    """Refuse weights that are no numbers.

    Raises:
        ModelError: naming the first such parameter.
    """
    for name, tensor in model.named_parameters():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"{name} holds NaN or infinite weights; the checkpoint is damaged, load it again from its source"
            )


def hash_of(model: PreTrainedModel) -> str:
    """SHA-256 over names, shapes and bits of all parameters, and of the buffers that a checkpoint has, wherever they lie.

    Such are the numbers that Gemma 4 scales its layers by, and those that DeepSeek-V3 corrects its router by.
    """
    return hashes_of(model)[0]


def hashes_of(model: PreTrainedModel) -> tuple[str, str]:
    """The same, and that of the parameters alone, which is no other where there is nothing beside them."""
    found, saved = hashlib.sha256(), model.state_dict().keys()
    _take_in(found, model.named_parameters())
    parameters = found.hexdigest()
    _take_in(found, (each for each in model.named_buffers() if each[0] in saved))
    return found.hexdigest(), parameters


def _take_in(found: "hashlib._Hash", tensors: Iterable[tuple[str, Tensor]]) -> None:
    """They pass through main memory one by one."""
    for name, tensor in tensors:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(flat_view(tensor.detach().cpu().contiguous()).data)
