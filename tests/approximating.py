"""Approximate lanes to score, and what they are by definition: the model's own forward on caches put together by hand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from architectures import LANES, Float64Softmax, build
from reusing import PROMPTS
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from twinpass.core import BASE, Lane, Request, Score, Tokens
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.embedded.scoring.scorer import PackedScorer
from twinpass.model.causal import CausalModel
from twinpass.model.trainable import Full
from twinpass.reuse.plan import Spans
from twinpass.reuse.reflected import Reflected

HEAD = (50, 51, 52, 53, 54, 55)
HEADED = tuple(
    replace(request, prompt=HEAD + request.prompt, active_from=len(HEAD) + request.active_from) for request in PROMPTS
)
"""Prompts that begin alike, before different prefixes of their own, some of which have none."""

PLUS, MINUS = LANES[:2]
MIRRORED = replace(MINUS, prefix="reflected")
OTHER = LANES[3]
FROZEN = replace(OTHER, prefix="base")
EXACT = (PLUS, MINUS, OTHER, BASE)
MIXED = (PLUS, MIRRORED, FROZEN, Lane(prefix="base"), MINUS, OTHER, BASE)
"""Approximate lanes beside exact ones, some of which are their twins."""

WHOLE = (Spans("prompt", 2), Spans("returning", 2), Spans("returning", 2, "keep"))
CUT = (Spans("prompt", 1), Spans("returning", 1, "keep"), Spans("prompt", 0))


def approximate_engine(name: str, *, slots: int | None = None, page_size: int = 1, **options: Any) -> TorchEngine:
    """Every weight of a model is trained; the cache has room for ``slots`` tokens, by default for all there will be."""
    policy = Reflected(page_size=page_size)
    if slots is not None:
        size = TorchEngine(build(name), Full(), reuse=policy).cache_slot_bytes
        policy = replace(policy, budget=slots * size)
    return TorchEngine(build(name), Full(), reuse=policy, **options)


def scorer_of(engine: TorchEngine) -> PackedScorer:
    assert engine._scorer is not None
    return engine._scorer


def free_slots(engine: TorchEngine) -> int:
    return scorer_of(engine)._cache.free


def prefix_of(request: Request) -> Tokens:
    return request.inputs[: min(request.active_from, len(request.prompt) - 1)]


KV = list[tuple[Tensor, Tensor]]
"""Keys and values, layer by layer."""


def prefill(model: PreTrainedModel, tokens: Tokens, cut: int = 0, entering: Tensor | None = None) -> tuple[KV, Tensor]:
    """A prefix's keys and values, and the states that enter layer ``cut``; ``entering`` takes their place."""
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        seen.append(args[0])
        return None if entering is None else (entering, *args[1:])

    layer = model.get_submodule(f"{CausalModel(model).layers_path}.{cut}")
    handle, cache = layer.register_forward_pre_hook(hook), DynamicCache()
    try:
        with torch.no_grad(), Float64Softmax():
            model(input_ids=torch.tensor([tokens]), past_key_values=cache, use_cache=True)
    finally:
        handle.remove()
    layers: list[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in layers], seen[0]


def blend(terms: Sequence[tuple[float, KV]]) -> KV:
    """``sum_i weight_i KV_i``."""
    layers = zip(*(kv for _, kv in terms), strict=True)
    return [
        (
            torch.stack([w * keys for (w, _), (keys, _) in zip(terms, own, strict=True)]).sum(0),
            torch.stack([w * values for (w, _), (_, values) in zip(terms, own, strict=True)]).sum(0),
        )
        for own in layers
    ]


def mirror(base: PreTrainedModel, plus: PreTrainedModel, minus: PreTrainedModel, tokens: Tokens, cut: int) -> KV:
    """``2 KV0 - KV+`` below layer ``cut``; from there on, what the minus weights make of the reflected states."""
    entry = min(cut, CausalModel(base).depth - 1)
    (about, middle), (opposite, up) = prefill(base, tokens, entry), prefill(plus, tokens, entry)
    own, _ = prefill(minus, tokens, entry, 2 * middle - up)
    return blend([(2.0, about), (-1.0, opposite)])[:cut] + own[cut:]


def scored_after(model: PreTrainedModel, prefix: KV, request: Request) -> Score:
    """The request's log-probabilities, the tokens after a prefix run by the model on these keys and values."""
    length, cache = prefix[0][0].shape[2], DynamicCache()
    for layer, (keys, values) in enumerate(prefix):
        cache.update(keys, values, layer)
    with torch.no_grad(), Float64Softmax():
        ids = torch.tensor([request.inputs[length:]])
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits[0]
    logprobs = torch.log_softmax(logits[len(request.prompt) - 1 - length :], -1).numpy()
    return np.asarray(logprobs[range(len(request.completion)), request.completion])
