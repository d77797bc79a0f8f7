"""Attention over packed rows, plugged into unmodified Hugging Face models through their attention registry.

Each segment of the trie attends to its path. Segments of like shape are stacked into buckets, gathered to a small
padded tensor and run as two batched matrix products; query heads that share a key head are folded into rows, so
grouped keys are never copied out.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from twinpass.engine.embedded.packing import Packed

NAME = "twinpass_packed"
BUCKET_ELEMENTS = 1 << 21
"""Largest score tensor of a bucket, per head."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """``S`` segments of like shape: query rows [S, n], key rows [S, m], distance [S, n, m] (negative: masked)."""

    queries: Tensor
    keys: Tensor
    distance: Tensor
    valid: Tensor

    def bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask [S, 1, 1, n, m]: 0 where a query may look, -inf in the future, the padding, past the window."""
        hidden = self.distance < 0
        if window is not None:
            hidden = hidden | (self.distance >= window)
        return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)[:, None, None]


class AttentionPlan:
    """Which rows attend to which, for all lanes of a packed batch, and what the model asked for while it ran.

    Args:
        packed: the batch of one lane.
        lanes: how many copies of it, one after another, make up the rows.
    """

    def __init__(self, packed: Packed, lanes: int) -> None:
        self.lanes = lanes
        self.windows: set[int | None] = set()
        self._bias: dict[tuple[int, int | None, torch.dtype], Tensor] = {}
        order = sorted(packed.segments, key=lambda s: (s.stop - s.start, len(s.path)), reverse=True)
        self.buckets = [_bucket(packed, group, lanes) for group in _alike(order, lanes)]

    def bias(self, index: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """The mask of bucket ``index``, built once for all layers with the same window."""
        key = (index, window, dtype)
        if key not in self._bias:
            self._bias[key] = self.buckets[index].bias(window, dtype)
        return self._bias[key]


def _alike(order: Sequence[Any], lanes: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    for segment in order:
        n, m = segment.stop - segment.start, len(segment.path)
        if group:
            top_n, top_m = group[0].stop - group[0].start, max(len(s.path) for s in group)
            size = (len(group) + 1) * lanes * top_n * max(top_m, m)
            if n < 0.75 * top_n or not 0.75 * top_m <= m <= 1.34 * top_m or size > BUCKET_ELEMENTS:
                yield group
                group = []
        group.append(segment)
    if group:
        yield group


def _bucket(packed: Packed, group: Sequence[Any], lanes: int) -> Bucket:
    n = max(s.stop - s.start for s in group)
    m = max(len(s.path) for s in group)
    queries = np.zeros((len(group), n), np.int64)
    keys = np.zeros((len(group), m), np.int64)
    distance = np.full((len(group), n, m), -1, np.int64)
    valid = np.zeros((len(group), n), bool)
    for i, s in enumerate(group):
        length = s.stop - s.start
        queries[i, :length] = np.arange(s.start, s.stop)
        keys[i, : len(s.path)] = s.path
        valid[i, :length] = True
        own = packed.positions[s.start : s.stop]
        distance[i, :length, : len(s.path)] = own[:, None] - packed.positions[s.path][None, :]
        distance[i, length:, 0] = 0
    offsets = np.arange(lanes)[:, None, None] * packed.rows
    return Bucket(
        torch.from_numpy((queries[None] + offsets).reshape(-1, n)),
        torch.from_numpy((keys[None] + offsets).reshape(-1, m)),
        torch.from_numpy(np.tile(distance, (lanes, 1, 1))),
        torch.from_numpy(np.tile(valid, (lanes, 1))),
    )


_plan: ContextVar[AttentionPlan] = ContextVar("twinpass_attention_plan")


def _packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The registry's contract: query [1, H, N, D], key and value [1, K, N, D] -> ([1, N, H, D], no weights)."""
    plan = _plan.get()
    plan.windows.add(sliding_window)
    q, k, v = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
    heads, groups, width = q.shape[1], k.shape[1], q.shape[2]
    share = heads // groups
    scale = width**-0.5 if scaling is None else scaling
    out = torch.empty((q.shape[0], heads, v.shape[2]), dtype=v.dtype)
    for index, bucket in enumerate(plan.buckets):
        count, n = bucket.queries.shape
        folded = q[bucket.queries].view(count, n, groups, share, width).permute(0, 2, 3, 1, 4)
        folded = folded.reshape(count, groups, share * n, width) * scale
        keys = k[bucket.keys].permute(0, 2, 3, 1)
        scores = torch.matmul(folded, keys).view(count, groups, share, n, -1)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        weights = torch.softmax(scores + plan.bias(index, sliding_window, scores.dtype), dim=-1, dtype=_accurate(q))
        weights = weights.to(v.dtype).view(count, groups, share * n, -1)
        result = torch.matmul(weights, v[bucket.keys].transpose(1, 2)).view(count, groups, share, n, -1)
        result = result.permute(0, 3, 1, 2, 4).reshape(count, n, heads, -1)
        out[bucket.queries[bucket.valid]] = result[bucket.valid]
    return out.unsqueeze(0), None


def _accurate(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype is torch.float64 else torch.float32


ALL_ATTENTION_FUNCTIONS.register(NAME, _packed_attention)


@contextmanager
def packed_attention(model: PreTrainedModel, plan: AttentionPlan) -> Iterator[None]:
    """Run the model's attention by ``plan`` inside the block; its configuration is put back afterwards."""
    configs: dict[int, Any] = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    token = _plan.set(plan)
    try:
        for config in configs.values():
            config._attn_implementation = NAME
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
        _plan.reset(token)
