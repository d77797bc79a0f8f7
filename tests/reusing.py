"""Engines with something to reuse, and what their scores are measured against."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from architectures import (
    ARCHITECTURES,
    FALLBACK,
    FEW,
    LANES,
    REQUESTS,
    TARGETS,
    Float64Softmax,
    deviation,
    direction,
    engine_of,
    naive,
    shifted,
)
from numpy.typing import NDArray
from tiers import some_fast
from torch import Tensor, nn
from transformers import PreTrainedModel

from twinpass.core import Lane, Request, Score, Scores, Term, Work
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.model.causal import CausalModel
from twinpass.model.trainable import Activated, Full, Layers, Lora, Trainable

NAMES = [*ARCHITECTURES, *FALLBACK]


architectures = pytest.mark.parametrize("name", some_fast(NAMES, FEW))


packed = pytest.mark.parametrize("name", some_fast(ARCHITECTURES, [name for name in FEW if name in ARCHITECTURES]))


PROMPTS = tuple(
    replace(request, active_from=max(0, len(request.prompt) - 1 - i % 3)) for i, request in enumerate(REQUESTS)
)
"""The requests with activation points: early, late, and at the very beginning, different ones on the same prompt."""


TERMS = [Term(3, 0.125), Term(2**62 + 1, -0.07)]


TWO = LANES[:2]


def activated_engine(name: str, model: PreTrainedModel, **options: Any) -> TorchEngine:
    engine = engine_of(name, model, Activated(rank=4, alpha=8.0, targets=TARGETS[name]), **options)
    engine.update(TERMS)
    return engine


@contextmanager
def acting(model: PreTrainedModel, adapters: Mapping[str, Tensor], active_from: int) -> Iterator[None]:
    """Inside the block the adapters are added to the rows of one sequence from the activation point on."""
    handles = []
    for name in [name for name in adapters if name.endswith(".lora_A.weight")]:
        path = name.removesuffix(".lora_A.weight")
        change = 2.0 * adapters[f"{path}.lora_B.weight"] @ adapters[name]

        def hook(module: nn.Module, args: Any, y: Tensor, change: Tensor = change) -> Tensor:
            rows = args[0].reshape(-1, change.shape[1]) @ change.t()
            rows[:active_from] = 0
            return torch.add(y, rows.view(y.shape))

        handles.append(model.get_submodule(path).register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def naive_logprobs(model: PreTrainedModel, tokens: Sequence[int]) -> NDArray[np.float64]:
    """The model's own forward on one sequence: log-probabilities [tokens, vocabulary] of what follows each token."""
    with torch.no_grad(), nullcontext() if model.config.model_type in FALLBACK else Float64Softmax():
        logits = model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0]
    return np.asarray(torch.log_softmax(logits.double(), -1).numpy())


def naive_activated(model: PreTrainedModel, adapters: Mapping[str, Tensor], request: Request) -> Score:
    """The model's own forward on one sequence, with the adapters added to the rows from the activation point on."""
    with acting(model, adapters, request.active_from):
        logprobs = naive_logprobs(model, request.inputs)[len(request.prompt) - 1 :]
    return np.asarray(logprobs[range(len(request.completion)), request.completion])


def in_lane(adapters: Mapping[str, Tensor], lane: Lane) -> dict[str, Tensor]:
    if lane.probe is None:
        return dict(adapters)
    seed = lane.probe.seed
    return {name: t + lane.scale * direction(name, t, seed, "binomial") for name, t in adapters.items()}


def assert_same(scores: Scores, expected: Scores, tolerance: float = 1e-9) -> None:
    for lane, other in zip(scores.values, expected.values, strict=True):
        assert deviation(lane, other) < tolerance


def trainables(name: str) -> dict[str, tuple[Trainable, Sequence[Request]]]:
    return {
        "full": (Full(), REQUESTS),
        "lora": (Lora(4, 8.0, TARGETS[name]), REQUESTS),
        "layers": (Layers(1, 2), REQUESTS),
        "activated": (Activated(4, 8.0, TARGETS[name]), PROMPTS),
    }


class Apart:
    """What an engine does, by plain PyTorch alone: every lane is a copy of the model whose weights, or adapters, are really moved.

    It shares no code of lanes, packing, cache or updates with what it judges. Adapters have a scale of 2.
    """

    def __init__(self, model: PreTrainedModel, trainable: Trainable) -> None:
        self._model, self._activated = model, isinstance(trainable, Activated)
        parameters = trainable.attach(model, 0).parameters
        self._names = list(parameters)
        adapters = isinstance(trainable, Lora)
        self._adapters = {name: tensor.clone() for name, tensor in parameters.items()} if adapters else None

    def update(self, terms: Sequence[Term]) -> None:
        if self._adapters is None:
            self._model = shifted(self._model, self._names, terms, "binomial")
            return
        for name, tensor in self._adapters.items():
            for term in terms:
                tensor.add_(term.scale * direction(name, tensor, term.seed, "binomial"))

    def score(self, requests: Sequence[Request], lanes: Sequence[Lane]) -> Scores:
        return Scores([self._lane(requests, lane) for lane in lanes], Work())

    def _lane(self, requests: Sequence[Request], lane: Lane) -> list[Score]:
        if self._adapters is None:
            terms = [] if lane.probe is None else [Term(lane.probe.seed, lane.scale)]
            return naive(shifted(self._model, self._names, terms, "binomial"), requests)
        adapters = in_lane(self._adapters, lane)
        whole = requests if self._activated else [replace(request, active_from=0) for request in requests]
        return [naive_activated(self._model, adapters, request) for request in whole]


@contextmanager
def rows_by_layer(model: PreTrainedModel) -> Iterator[list[int]]:
    """Counts the rows that each layer's attention module really reads."""
    counts = [0] * CausalModel(model).depth
    attentions = [module for module in model.modules() if type(module).__name__.endswith("Attention")]

    def count(module: nn.Module, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        counts[int(cast(Any, module).layer_idx)] += hidden.numel() // hidden.shape[-1]

    handles = [module.register_forward_pre_hook(count, with_kwargs=True) for module in attentions]
    yield counts
    for handle in handles:
        handle.remove()
