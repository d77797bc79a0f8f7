"""Weights formed where they are multiplied: the scores of those that are written first, on every architecture."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, FEW, REQUESTS, bits, build, deviation
from tiers import some_fast
from transformers import PreTrainedModel

from twinpass.core import BASE, Lane, Probe, Score
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.model.trainable import Full, Layers, Trainable
from twinpass.perturb import parameters
from twinpass.perturb.backend import NUMBA
from twinpass.perturb.gemm import multiply
from twinpass.perturb.noise import Distribution

pytestmark = pytest.mark.skipif(not multiply.AVAILABLE, reason="no instructions here that the products are made of")

LANES = [
    Lane(Probe(7), 1, 0.01),
    Lane(Probe(7), -1, 0.01),
    BASE,
    Lane(Probe(9), 1, 0.02),
]
"""A pair, a lane whose weights are the model's own, and one of another direction."""

TRAINABLES: dict[str, Trainable] = {"full": Full(), "layers": Layers(first=1, last=2)}
CONV1D = {"gpt2"}
"""Only their head is linear."""


@pytest.mark.table
@pytest.mark.parametrize("noise", ["binomial", "gaussian"])
@pytest.mark.parametrize("kind", TRAINABLES)
@pytest.mark.parametrize("name", some_fast(ARCHITECTURES, FEW[:3]))
def test_scores_are_those_of_written_weights(
    name: str, kind: str, noise: Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, trainable = build(name, torch.float32), TRAINABLES[kind]
    before = bits(model)
    found, called = scores(model, trainable, noise, monkeypatch, fuses=True)
    expected, not_called = scores(model, trainable, noise, monkeypatch, fuses=False)
    assert (called > 0) == (kind == "full" or name not in CONV1D)
    assert not_called == 0
    for own, other in zip(found, expected, strict=True):
        assert deviation(own, other) < 2e-4
    assert deviation(found[0], found[1]) > 1e-2
    assert all(torch.equal(before[key], tensor) for key, tensor in bits(model).items())


def scores(
    model: PreTrainedModel,
    trainable: Trainable,
    noise: Distribution,
    monkeypatch: pytest.MonkeyPatch,
    *,
    fuses: bool,
) -> tuple[list[list[Score]], int]:
    """Of all lanes, and how many products formed their weights themselves."""
    calls: list[None] = []
    own = multiply.multiply

    def counted(*args: Any) -> None:
        calls.append(None)
        own(*args)

    with monkeypatch.context() as patch:
        patch.setattr(parameters, "backend_for", lambda tensor: replace(NUMBA, fuses=fuses))
        patch.setattr(multiply, "multiply", counted)
        found = TorchEngine(model, trainable, noise=noise).score(REQUESTS, LANES).values
    return list(map(list, found)), len(calls)
