"""Attention over packed rows, plugged into unmodified Hugging Face models through their attention registry.

Each piece of the trie attends to its path: rows of the same pass, and tokens whose keys and values lie in the pool.
Pieces of like shape are stacked into buckets, gathered to a small padded tensor and run as two batched matrix
products; query heads that share a key head are folded into rows, so grouped keys are never copied out.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from twinpass.cache.pool import Pool
from twinpass.engine.embedded.scoring import fused
from twinpass.engine.embedded.scoring.indices import slots_of
from twinpass.engine.embedded.scoring.packing import Rows
from twinpass.engine.embedded.scoring.pieces import Piece
from twinpass.errors import ModelError
from twinpass.model.device import CPU, Device
from twinpass.phases import phase

NAME = "twinpass_packed"
BUCKET_ELEMENTS = 1 << 21
"""Largest score tensor of a bucket, per head."""

SMALL_ELEMENTS = 1 << 14
"""Below this padding costs less than another bucket's dozen of small operations."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """``S`` pieces of like ``shape`` (S, n, m): query rows [S * n], keys [S * m], positions of both, and which queries see which keys.

    What pads queries looks at what the last real one does, what pads keys lies beyond all queries. ``valid`` are the places of
    [S * n] that are no padding. ``keys`` are rows of the pass, or slots if any key lies in the pool (``pooled``); then ``fresh`` are
    the places in [S * m] of those that do not, and ``own`` their rows.
    """

    pooled: bool
    shape: tuple[int, int, int]
    queries: Tensor
    keys: Tensor
    positions: Tensor
    key_positions: Tensor
    places: Tensor
    first: Tensor
    behind: Tensor
    valid: Tensor
    fresh: Tensor
    own: Tensor

    def bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask [S, 1, 1, n, m]: 0 where a query may look, -inf in the future, beside it, in the padding, past the window."""
        distance, places = self.positions[:, :, None] - self.key_positions[:, None], self.places[:, :, None]
        hidden = (distance < 0) | (places < self.first[:, None]) | (places >= self.behind[:, None])
        if window is not None:
            hidden |= distance >= window
        bias = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return bias.masked_fill_(hidden, -torch.inf)[:, None, None]


class Heads:
    """Where a bucket's rows lie in tensors [rows, heads, width] seen as [rows * heads, width], for ``groups`` key heads.

    Query heads that share a key head are neighbours; they are folded into its rows: [S, groups, share, n].
    """

    def __init__(self, bucket: Bucket, heads: int, groups: int) -> None:
        count, n, m = bucket.shape
        self.shape = (count * groups, heads // groups * n, m)
        head, group = (torch.arange(number, device=bucket.keys.device) for number in (heads, groups))
        self.queries = (bucket.queries.view(count, 1, n) * heads + head[:, None]).reshape(-1)
        valid = (bucket.valid // n * heads * n + bucket.valid % n)[:, None] + head * n
        self.valid = None if len(bucket.valid) == count * n else valid.reshape(-1)
        self.rows = self.queries if self.valid is None else self.queries[self.valid]
        self.keys = (bucket.keys.view(count, 1, m) * groups + group[:, None]).reshape(-1)
        place = (bucket.fresh // m * groups * m + bucket.fresh % m)[:, None] + group * m
        self.fresh = place.reshape(-1)
        self.own = (bucket.own[:, None] * groups + group).reshape(-1)
        self.pooled = bucket.pooled

    def gather(self, computed: Tensor, pool: Tensor | None) -> Tensor:
        """Keys, or values, [S * groups, m, width], out of those of the pass [rows, groups, width] and of all slots."""
        if self.pooled and pool is not None:
            found = pool.flatten(0, 1).index_select(0, self.keys)
            found.index_copy_(0, self.fresh, computed.flatten(0, 1).index_select(0, self.own))
        else:
            found = computed.flatten(0, 1).index_select(0, self.keys)
        return found.view(self.shape[0], self.shape[2], -1)

    def scatter(self, result: Tensor, out: Tensor) -> None:
        """Write [S * groups, share * n, width] to the query rows of ``out`` [rows, heads, width]."""
        flat = result.flatten(0, 1)
        out.flatten(0, 1).index_copy_(0, self.rows, flat if self.valid is None else flat.index_select(0, self.valid))


@dataclass(frozen=True, slots=True)
class Look:
    """How a layer's queries look at keys: products times ``scale``, squeezed below ``softcap``, keys fewer than ``window`` tokens away."""

    scale: float
    window: int | None = None
    softcap: float | None = None


class Attending(ABC):
    """How the rows of one pass attend to each other, and to what lies in the pool."""

    @abstractmethod
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, look: Look) -> Tensor:
        """Queries [rows, heads, width], keys and values [rows, groups, width] of the pass: [rows, heads, width of values]."""


class Enough(BaseException):
    """Keys and values of every layer are where they are to be, and nothing else is wanted of a pass. No ``except Exception`` catches it."""


class AttentionPass(Attending):
    """Which rows attend to which in one pass, and what the model asked for while it ran.

    Args:
        pieces: every row of the pass is a query of exactly one.
        pool: where the slots of the pieces' keys are read.
        store: rows whose keys and values are written to the pool, and their slots.
        device: where the pass runs.
        enough: the pass ends with :class:`Enough` when so many layers have their keys and values; None: it goes on to its outputs.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        pool: Pool,
        store: tuple[Rows, Rows],
        device: Device = CPU,
        enough: int | None = None,
    ) -> None:
        self.pool, self.device, self.enough = pool, device, enough
        self.windows: set[int | None] = set()
        self.layer_bytes: dict[int, int] = {}
        self._bias: dict[tuple[int, int | None, torch.dtype, int], Tensor] = {}
        self._heads: dict[tuple[int, int], list[Heads]] = {}
        order = sorted(pieces, key=lambda piece: piece.shape, reverse=True)
        groups = [_BucketParts.of(group) for group in _alike(order, device.growth)]
        sent = iter(device.send(*store, *(part for group in groups for part in group.parts)))
        self.stored_rows, self.stored_slots = next(sent), next(sent)
        self.buckets = [Bucket(group.pooled, group.shape, *(next(sent) for _ in group.parts)) for group in groups]

    def bias(self, index: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """The mask of bucket ``index``, built once for all layers with the same window."""
        key = (index, window, dtype, 0)
        if key not in self._bias:
            self._bias[key] = self.buckets[index].bias(window, dtype)
        return self._bias[key]

    def mask(self, index: int, window: int | None, dtype: torch.dtype, share: int) -> Tensor:
        """The same for ``share`` query heads folded into rows, as one operator takes it."""
        key = (index, window, dtype, share)
        if key not in self._bias:
            self._bias[key] = fused.mask(self.buckets[index].bias(window, dtype), share)
        return self._bias[key]

    def heads(self, heads: int, groups: int) -> list[Heads]:
        """Each bucket's places in tensors of so many heads, found once for all layers that have as many."""
        key = (heads, groups)
        if key not in self._heads:
            self._heads[key] = [Heads(bucket, heads, groups) for bucket in self.buckets]
        return self._heads[key]

    def exchange(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Write what is to be kept of [rows, heads, width] keys and values; those of all slots, if any is looked at.

        Raises:
            ModelError: the layer has some in this pass already, which these would take the place of.
        """
        if layer in self.layer_bytes:
            raise ModelError(
                f"its layer {layer} attends more than once, and one set of keys and values is kept of each"
            )
        self.layer_bytes[layer] = sum(t[0].numel() * t.element_size() for t in (keys, values))
        if len(self.stored_rows):
            self.pool.write(layer, self.stored_slots, keys[self.stored_rows], values[self.stored_rows])
        return self.pool.of(layer) if any(bucket.pooled for bucket in self.buckets) else (None, None)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, look: Look) -> Tensor:
        self.windows.add(look.window)
        heads, groups, width = q.shape[1], k.shape[1], q.shape[2]
        pooled_keys, pooled_values = self.exchange(layer, k, v)
        if len(self.layer_bytes) == self.enough:
            raise Enough
        out = torch.empty((q.shape[0], heads, v.shape[2]), dtype=v.dtype, device=v.device)
        for index, layout in enumerate(self.heads(heads, groups)):
            folded = q.flatten(0, 1).index_select(0, layout.queries).view(*layout.shape[:2], width)
            keys, values = layout.gather(k, pooled_keys), layout.gather(v, pooled_values)
            if self.device.fused and look.softcap is None:
                mask = self.mask(index, look.window, q.dtype, heads // groups)
                a, b, c = (part.view(-1, groups, *part.shape[1:]) for part in (folded, keys, values))
                layout.scatter(fused.attend(a, b, c, mask, look.scale).flatten(0, 1), out)
                continue
            bias = self.bias(index, look.window, q.dtype)
            scores = bias.expand(-1, groups, heads // groups, -1, -1).clone(memory_format=torch.contiguous_format)
            scores = scores.view(layout.shape)
            if look.softcap is None:
                scores.baddbmm_(folded, keys.transpose(1, 2), alpha=look.scale)
            else:
                products = torch.bmm(folded, keys.transpose(1, 2))
                scores += torch.tanh(products * (look.scale / look.softcap)) * look.softcap
            weights = torch.softmax(scores, dim=-1, dtype=_accurate(q)).to(v.dtype)
            layout.scatter(torch.bmm(weights, values), out)
        return out


def _alike(order: Sequence[Piece], growth: int) -> Iterator[list[Piece]]:
    group: list[Piece] = []
    top_n = top_m = 0
    for piece in order:
        n, m = piece.shape
        if group:
            size = (len(group) + 1) * top_n * max(top_m, m)
            alike = n >= 0.75 * top_n and 0.75 * top_m <= m <= 1.34 * top_m
            if size > growth * (BUCKET_ELEMENTS if alike else SMALL_ELEMENTS):
                yield group
                group = []
        top_n, top_m = (max(top_n, n), max(top_m, m)) if group else (n, m)
        group.append(piece)
    if group:
        yield group


BEYOND = 1 << 62
"""The position of what is no key."""


@dataclass(frozen=True, slots=True)
class _BucketParts:
    """A bucket in the making: its ``parts`` are still in main memory, in the order of :class:`Bucket`."""

    pooled: bool
    shape: tuple[int, int, int]
    parts: tuple[Rows, ...]

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> "_BucketParts":
        n, m = (max(piece.shape[axis] for piece in pieces) for axis in (0, 1))
        queries, positions, places = (np.zeros((len(pieces), n), np.int64) for _ in range(3))
        keys, key_positions, first, behind = (np.full((len(pieces), m), pad, np.int64) for pad in (0, BEYOND, 0, 0))
        valid = np.zeros((len(pieces), n), bool)
        for i, piece in enumerate(pieces):
            own, others = piece.shape
            queries[i, :own], keys[i, :others] = piece.queries, piece.keys
            positions[i, :own], key_positions[i, :others] = piece.positions, piece.key_positions
            places[i, :own], first[i, :others], behind[i, :others] = piece.places, piece.first, piece.behind
            positions[i, own:], places[i, own:] = piece.positions[-1], piece.places[-1]
            valid[i, :own] = True
        flat = keys.reshape(-1)
        fresh = np.flatnonzero(flat >= 0)
        own_rows, pooled = flat[fresh], len(fresh) < len(flat)
        where = slots_of(flat) if pooled else flat
        found = (np.flatnonzero(valid), fresh, own_rows)
        parts = (queries.reshape(-1), where, positions, key_positions, places, first, behind, *found)
        return cls(pooled, (len(pieces), n, m), parts)


_running: ContextVar[Attending] = ContextVar("twinpass_attention_pass")


HARMLESS = frozenset({"dropout", "position_ids", "use_cache", "cache_position", "output_attentions", "return_dict"})
"""Arguments that models pass to their attention and that change nothing of it here: positions are the pass's, nothing drops out."""


@phase("attention")
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
    """The registry's contract: query [B, H, N, D], key and value [B, K, N, D] -> ([B, N, H, D], no weights).

    Raises:
        ModelError: an argument says something that is not done here.
    """
    if unknown := sorted(name for name, value in kwargs.items() if value is not None and name not in HARMLESS):
        raise ModelError(
            f"{type(module).__name__} passes {', '.join(unknown)} to its attention, which packing leaves out"
        )
    q, k, v = (part.transpose(1, 2).flatten(0, 1) for part in (query, key, value))
    look = Look(q.shape[2] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    out = _running.get().attend(cast(Any, module).layer_idx, q, k, v, look)
    return out.view(query.shape[0], -1, *out.shape[1:]), None


def _accurate(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype is torch.float64 else torch.float32


ALL_ATTENTION_FUNCTIONS.register(NAME, _packed_attention)


@contextmanager
def packed_attention(configs: Iterable[PreTrainedConfig], attention: Attending) -> Iterator[None]:
    """Run the attention of the model that has these configurations by ``attention`` inside the block; they are put back afterwards."""
    before = [(config, config._attn_implementation) for config in configs]
    token = _running.set(attention)
    try:
        for config, _ in before:
            config._attn_implementation = NAME
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation
        _running.reset(token)
