"""A checkpoint is known by all that it holds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from architectures import GROUPED, NARROW, WINDOW, build
from transformers import AutoModelForCausalLM, Gemma4TextConfig, PreTrainedModel

from twinpass.core import BASE, Request
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.model.identity import hash_of, hashes_of
from twinpass.model.trainable import Activated
from twinpass.reuse.activated import ActivatedReuse


def scaled(scales: tuple[float, ...]) -> PreTrainedModel:
    """A model whose layers scale their stream by numbers that are no parameters."""
    config = Gemma4TextConfig(
        **GROUPED | {"num_hidden_layers": 3},
        **NARROW,
        sliding_window=WINDOW,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        hidden_size_per_layer_input=0,
        num_kv_shared_layers=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model: Any = cast(Any, AutoModelForCausalLM).from_config(config, dtype=torch.float32)
    for layer, scale in zip(model.model.layers, scales, strict=True):
        layer.layer_scalar.fill_(scale)
    return cast(PreTrainedModel, model.eval())


def test_numbers_that_are_no_parameters_are_part_of_a_checkpoint(tmp_path: Path) -> None:
    """Keys and values on disk that another model has left are not taken for this one's."""
    requests = [Request(tuple(range(5, 20)), (3, 4), active_from=13)]

    def scores(scales: tuple[float, ...], policy: ActivatedReuse) -> np.ndarray:
        engine = TorchEngine(scaled(scales), Activated(2, 4.0, ("q_proj",)), reuse=policy)
        return np.asarray(engine.score(requests, [BASE]).values[0][0])

    own = scores((1.0, 0.2, 1.0), ActivatedReuse())
    other = scores((0.2, 1.0, 1.0), ActivatedReuse(spill=str(tmp_path)))
    assert np.abs(other - own).max() > 1e-2
    assert np.abs(scores((1.0, 0.2, 1.0), ActivatedReuse(spill=str(tmp_path))) - own).max() < 1e-6
    assert hash_of(scaled((1.0, 0.2, 1.0))) != hash_of(scaled((0.2, 1.0, 1.0)))


@pytest.mark.parametrize(("make", "more"), [(lambda: build("llama"), False), (lambda: build("gemma4"), True)])
def test_most_models_are_known_by_their_parameters(make: Callable[[], PreTrainedModel], more: bool) -> None:
    """Tables of frequencies, which are made anew, are no part of what is loaded."""
    model = make()
    whole, parameters = hashes_of(model)
    assert (whole != parameters) == more
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq"):
            buffer.mul_(2)
    assert hashes_of(model) == (whole, parameters)
