"""What tests of gradients have in common: requests, a loss of their scores, adapters other than zero."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from architectures import FALLBACK, REQUESTS, Float64Softmax
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from twinpass.core import Request, Score, Term
from twinpass.engine.base import Gradient
from twinpass.engine.embedded.engine import TorchEngine

SCALE = 2.0
"""Of adapters whose alpha is twice their rank."""

ACTIVE = [
    Request(request.prompt, request.completion, active_from=max(0, len(request.prompt) - 2), relative=False)
    for request in REQUESTS
]
TERMS = [Term(3, 0.3), Term(4, 0.2)]


def slopes(scores: Sequence[Score]) -> list[Score]:
    """Of a loss that weighs every score otherwise, and depends on all of them."""
    total = float(np.tanh(sum(score.sum() for score in scores) / 100))
    return [np.cos(np.arange(len(score)) + i) * (1 + total) for i, score in enumerate(scores)]


def assert_same(found: Gradient, expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.tensors.keys() == expected.keys()
    whole = torch.stack([tensor.square().sum() for tensor in expected.values()]).sum().sqrt()
    assert found.norm == pytest.approx(float(whole), rel=tolerance)
    for name, tensor in expected.items():
        assert float((found.tensors[name] - tensor).norm()) <= tolerance * float(whole), name
    assert all(bool(tensor.any()) for tensor in expected.values())


def plainly(
    model: PreTrainedModel, engine: TorchEngine, requests: Sequence[Request], activated: bool
) -> dict[str, Tensor]:
    """The gradient by autograd on the model's own forward, one request after another.

    An activated adapter's rows before its point are the base model's.
    """
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in engine.parameters.items()}
    own = deepcopy(model)
    for parameter in own.parameters():
        parameter.requires_grad_(False)
    scores = [scores_of(own, leaves, request, activated) for request in requests]
    given = slopes([score.detach().double().numpy() for score in scores])
    loss = torch.stack([(score * torch.from_numpy(own)).sum() for score, own in zip(scores, given, strict=True)]).sum()
    found = torch.autograd.grad(loss, list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def scores_of(model: PreTrainedModel, leaves: Mapping[str, Tensor], request: Request, activated: bool) -> Tensor:
    """Log-probabilities of a request's completion, differentiable by adapters, if any; in float64 softmax is, too."""
    inputs = torch.tensor([request.inputs])
    handles = []
    acts = (torch.arange(inputs.shape[1]) >= (request.active_from if activated else 0)).to(model.dtype)[:, None]
    for path in {name.removesuffix(".lora_A.weight") for name in leaves if name.endswith("A.weight")}:
        module = model.get_submodule(path)
        change = SCALE * leaves[f"{path}.lora_B.weight"] @ leaves[f"{path}.lora_A.weight"]
        assert isinstance(module, torch.nn.Linear | Conv1D)
        handles.append(
            module.register_forward_hook(
                lambda _, args, y, change=change: y + acts * (args[0] @ change.t()).view(y.shape)
            )
        )
    raised = model.dtype is torch.float64 and model.config.model_type not in FALLBACK
    exact: Any = Float64Softmax() if raised else torch.enable_grad()
    with exact:
        logits = model(input_ids=inputs, use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    rows = torch.log_softmax(logits[len(request.prompt) - 1 :], -1)
    return rows[range(len(request.completion)), list(request.completion)]
