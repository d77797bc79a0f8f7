"""Models that do a thing in a way of their own, between embeddings and head: what is told of them is right, or refused by name."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from architectures import GROUPED, NARROW, REQUESTS, WINDOW, deviation, naive
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    DiffLlamaConfig,
    Gemma3nTextConfig,
    Gemma4TextConfig,
    PretrainedConfig,
    PreTrainedModel,
    XLNetConfig,
)

from twinpass.core import BASE, Request, Score
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import ModelError
from twinpass.model.causal import CausalModel
from twinpass.model.projections import Projections
from twinpass.model.trainable import Activated, Informed, Lora, Trainable
from twinpass.reuse.exact import Exact

PER_LAYER: dict[str, Any] = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 97}
"""Inputs that every layer has for itself, by token."""


def gemma4() -> PretrainedConfig:
    kinds = ["sliding_attention", "full_attention"]
    return Gemma4TextConfig(
        **GROUPED, **NARROW, **PER_LAYER, sliding_window=WINDOW, layer_types=kinds, num_kv_shared_layers=0
    )


def gemma3n() -> PretrainedConfig:
    kinds = ["sliding_attention", "full_attention"] * 2
    sizes: dict[str, Any] = GROUPED | {"num_hidden_layers": 4, "head_dim": 8}
    own: dict[str, Any] = {"laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 4}
    return Gemma3nTextConfig(
        **sizes, **PER_LAYER, **own, sliding_window=WINDOW, layer_types=kinds, num_kv_shared_layers=2
    )


def build(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(1)
    auto: Any = AutoModelForCausalLM
    model: PreTrainedModel = auto.from_config(config).to(dtype).eval()
    return model


def slopes(scores: Sequence[Score]) -> list[Score]:
    return [np.cos(np.arange(len(score)) + 10 * i) for i, score in enumerate(scores)]


def test_the_error_is_told_of_a_model_whose_layers_have_inputs_of_their_own() -> None:
    """A layer beside those that run is asked for them, whatever order its weight is held in."""
    engine = TorchEngine(build(gemma4()), Informed(layers=1))
    before = engine.observe(REQUESTS, slopes)
    engine.prepack()
    packed = [weight for weight in engine.model.parameters() if weight.layout is not torch.strided]
    after = engine.observe(REQUESTS, slopes)
    assert packed
    assert torch.allclose(before.errors, after.errors, atol=1e-4)
    assert float(before.errors.abs().max()) > 1e-2


@pytest.mark.parametrize("trainable", [Informed(layers=1), Projections(layers=1)], ids=lambda t: type(t).__name__)
def test_a_model_of_several_streams_is_refused_where_the_error_of_one_is_asked_for(trainable: Trainable) -> None:
    said = "Gemma3nForCausalLM makes logits of more than one state of 32 numbers a token.*'(activated|spsa)' instead"
    with pytest.raises(ModelError, match=said):
        TorchEngine(build(gemma3n()), trainable, reuse=Exact()).feedback(REQUESTS, slopes)


def test_a_layer_that_attends_twice_is_not_packed() -> None:
    """Its second values would lie where the first belong: a prompt that was kept would be read as another."""
    model = build(DiffLlamaConfig(**GROUPED), torch.float64)
    with pytest.warns(UserWarning, match="layer 0 attends more than once.*its own forward instead"):
        engine = TorchEngine(model, Activated(rank=2))
    requests = [Request((5, 6, 7, 8, 10), (11, 12), 4), Request((5, 6, 7, 8, 10), (3,), 4)]
    for _ in range(2):
        engine.warm(requests, [], set())
        assert deviation(engine.score(requests, [BASE]).values[0], naive(model, requests)) < 1e-6


def test_a_model_that_reads_what_comes_later_is_refused_and_as_a_decoder_it_is_not() -> None:
    """BERT's answers of several tokens were scored by a model that had read them."""
    sizes: dict[str, Any] = {key: GROUPED[key] for key in ("vocab_size", "hidden_size", "num_attention_heads")}
    sizes |= {"num_hidden_layers": 2, "intermediate_size": 48, "max_position_embeddings": 64}
    with pytest.raises(ModelError, match=r"BertLMHeadModel reads tokens that come later.*is_decoder=True"):
        TorchEngine(build(BertConfig(**sizes)), Lora(targets=("query",)))
    model = build(BertConfig(**sizes, is_decoder=True), torch.float64)
    engine = TorchEngine(model, Lora(targets=("query",)))
    assert deviation(engine.score(REQUESTS, [BASE]).values[0], naive(model, REQUESTS)) < 1e-6


def test_a_window_of_minus_one_is_none() -> None:
    model = build(XLNetConfig(vocab_size=97, d_model=32, n_layer=2, n_head=4, d_inner=48))
    assert model.config.max_position_embeddings == -1
    assert CausalModel(model).window is None
    with pytest.raises(ModelError, match="XLNetLMHeadModel reads tokens that come later"):
        TorchEngine(model, Lora(targets=("layer_1",)))
