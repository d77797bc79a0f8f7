"""What tests of gradients have in common: requests, a loss of their scores, adapters other than zero."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from architectures import REQUESTS
from torch import Tensor

from twinpass.core import Request, Score, Term
from twinpass.engine.base import Gradient

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
