"""What makes a checkpoint the same, and fit to be used."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from twinpass.errors import ModelError
from twinpass.perturb.layout import flat_view


def digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of values as JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


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
    """SHA-256 over names, shapes and bits of all parameters, wherever they lie; they pass through main memory one by one."""
    digest = hashlib.sha256()
    for name, tensor in model.named_parameters():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(flat_view(tensor.detach().cpu().contiguous()).data)
    return digest.hexdigest()
