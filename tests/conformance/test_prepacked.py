"""Weights in oneDNN's blocks: the same scores, a model that is whole again afterwards."""

from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import LANES, bits, build, deviation, engine_of, naive
from reusing import packed, trainables
from torch import nn
from transformers import LlamaForCausalLM

from twinpass.core import BASE, Lane, Probe
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.model.trainable import Lora


def prepacked(model: nn.Module) -> list[str]:
    return [name for name, weight in model.named_parameters() if weight.layout is not torch.strided]


@pytest.mark.table
@pytest.mark.parametrize("kind", ["full", "lora", "layers", "activated"])
@packed
def test_scores_are_the_same(name: str, kind: str) -> None:
    trainable, requests = trainables(name)[kind]
    model = build(name, torch.float32)
    before = bits(model)
    engine = engine_of(name, model, trainable)
    expected = engine.score(requests, LANES)
    engine.prepack()
    for _ in range(2):
        scores = engine.score(requests, LANES)
        for a, b in zip(expected.values, scores.values, strict=True):
            assert np.abs(np.concatenate(a) - np.concatenate(b)).max() < 1e-4
    blocked = prepacked(model)
    assert bool(blocked) == (kind in ("lora", "activated") and name != "gpt2")
    engine.unpack()
    assert not prepacked(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in bits(model).items())


def test_derivatives_are_taken_over_rows() -> None:
    model = build("llama", torch.float32)
    engine = TorchEngine(model, Lora(2, 4.0))
    requests = trainables("llama")["lora"][1]
    lane = Lane(Probe(7), 1, 0.01, linear=True)
    expected = engine.score(requests, [lane])
    engine.prepack()
    found = engine.score(requests, [lane])
    assert np.array_equal(np.concatenate(expected.values[0]), np.concatenate(found.values[0]))


def test_nothing_holds_on_to_the_file_that_weights_came_from(tmp_path: Path) -> None:
    """They are mapped into memory, all as one: a single tensor would keep the rest of them there."""
    build("llama", torch.float32).save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    engine = TorchEngine(model, Lora(2, 4.0))
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.named_parameters()}
    engine.prepack()
    for name, tensor in model.named_parameters():
        if tensor.layout is torch.strided:
            assert tensor.data_ptr() != before[name][0]
            assert torch.equal(tensor, before[name][1])


class Reader(nn.Module):
    """Uses its layer's weight without calling the layer."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.inner.weight.t()


def test_a_model_that_reads_weights_itself_stays_in_rows() -> None:
    model = build("llama", torch.float32)
    model.model.layers[0].mlp.up_proj = Reader(model.model.layers[0].mlp.up_proj)
    engine = TorchEngine(model, Lora(2, 4.0, ("q_proj",)))
    assert engine.packs
    engine.prepack()
    assert not prepacked(model)
    requests = trainables("llama")["full"][1]
    (scores,) = engine.score(requests, [BASE]).values
    assert deviation(scores, naive(model, requests)) < 1e-4
