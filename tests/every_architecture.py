"""What tests of every architecture compare by, and with what tolerance."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy

import pytest
import torch
from architectures import (
    ARCHITECTURES,
    FALLBACK,
    FEW,
    REQUESTS,
    bits,
    deviation,
    in_lane,
    naive,
)
from tensors import same
from tiers import some_fast
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from twinpass.core import BASE, Lane, Probe, Term
from twinpass.engine.embedded.engine import TorchEngine

NAMES = [*ARCHITECTURES, *FALLBACK]
DTYPES = [torch.float64, torch.float32]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-4}
VISIBLE = 1e-4
"""The least change of some score that leaving one parameter out must make, 100 000 times the tolerance."""
TERMS = [Term(3, 0.125), Term(2**62 + 1, -0.07), Term(3, 0.01)]
GRID_LANES = [Lane(Probe(7), 1, 2**-4), Lane(Probe(7), -1, 2**-4), BASE, Lane(Probe(9), -1, 2**-5)]
architectures = pytest.mark.parametrize("name", NAMES)
few = pytest.mark.parametrize("name", some_fast(NAMES, FEW))


def assert_lanes(engine: TorchEngine, model: PreTrainedModel, tested: Sequence[Lane], tolerance: float = 1e-9) -> None:
    """Every lane scores like a copy of ``model`` whose weights are really those of the lane."""
    scores = engine.score(REQUESTS, tested)
    for lane, values in zip(tested, scores.values, strict=True):
        plain = in_lane(model, engine.parameters, lane, engine.noise)
        assert deviation(values, naive(plain, REQUESTS)) < tolerance


@contextmanager
def untouched(model: PreTrainedModel) -> Iterator[None]:
    """The block leaves no trace in the model's weights, configuration and modules."""
    before, attention_before, config = bits(model), model.config._attn_implementation, model.config.to_dict()
    yield
    assert same(before, bits(model))
    assert model.config._attn_implementation == attention_before
    assert model.config.to_dict() == config
    assert [path for path, module in model.named_modules() if "forward" in module.__dict__] == []


def merged(model: PreTrainedModel, adapters: Mapping[str, Tensor], scale: float) -> PreTrainedModel:
    """A copy of the model with ``W + scale B A`` in place of ``W``."""
    copy = deepcopy(model)
    for path in [name.removesuffix(".lora_A.weight") for name in adapters if name.endswith(".lora_A.weight")]:
        change = scale * adapters[f"{path}.lora_B.weight"] @ adapters[f"{path}.lora_A.weight"]
        module = copy.get_submodule(path)
        weight = module.get_parameter("weight").detach()
        weight += change.t() if isinstance(module, Conv1D) else change
    return copy
