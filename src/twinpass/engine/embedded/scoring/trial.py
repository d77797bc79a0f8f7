"""Try a model on a few short sequences: does the packed pass return what its own forward returns?"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from twinpass.cache.pool import Pool
from twinpass.cache.prefix_cache import PrefixCache
from twinpass.core import Request, Score, WeightsVersion
from twinpass.engine.embedded.linear.products import Linear
from twinpass.engine.embedded.scoring.jobs import Common, Job
from twinpass.engine.embedded.scoring.packing import Reads, Rows, pack
from twinpass.engine.embedded.scoring.passes import Batch, Passes, Running, alone
from twinpass.engine.embedded.scoring.plain import score_plain
from twinpass.engine.embedded.scoring.scorer import PackedScorer
from twinpass.model.causal import CausalModel
from twinpass.reuse.base import Sharing

BATCH_WIDE_ROTARY = ("dynamic", "longrope")
"""Rotary scalings that follow the longest sequence of a batch: sequences cannot share a pass exactly."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Whether a model ``packs``, the ``reason`` if not, and the bytes of a token's keys and values by layer.

    ``hidden_bytes`` are those of a token's state between two layers.
    """

    packs: bool
    reason: str = ""
    layer_bytes: tuple[int, ...] = ()
    hidden_bytes: int = 0

    @classmethod
    def of(cls, causal: CausalModel, cut: int) -> "Trial":
        """Try a model, with what lies below layer ``cut`` run apart."""
        if reason := _obstacle(causal):
            return cls(False, reason)
        passes = Passes(causal, PrefixCache(64), Pool(64, cut, causal.place.device), chunk_rows=4)
        requests = _requests(causal)
        try:
            packed = _run(passes, requests, cut)
        except Exception as error:  # any model's own code runs here
            return cls(False, f"{type(error).__name__}: {error}")
        if sorted(passes.layer_bytes) != list(range(causal.depth)):
            return cls(False, "its attention does not go through the attention registry, layer by layer")
        if _slides(causal) and passes.windows <= {None}:
            return cls(False, "its attention does not pass its sliding window on")
        plain = score_plain(causal, requests, [0] * len(requests), alone)
        if not all(_same(causal, a, b) for a, b in zip(packed, plain, strict=True)):
            return cls(False, "the scores differ")
        size = int(causal.model.config.get_text_config().hidden_size) * causal.model.dtype.itemsize
        return cls(True, "", tuple(passes.layer_bytes[i] for i in range(causal.depth)), size)


def still_runs(causal: CausalModel, cut: int, linear: Linear | None) -> bool:
    """Whether a model that packs does so after a change to how its weights are held, multiplied by ``linear``."""
    try:
        pool = Pool(64, cut, causal.place.device)
        _run(Passes(causal, PrefixCache(64), pool, chunk_rows=4, linear=linear), _requests(causal), cut)
    except Exception:  # any model's own code runs here
        return False
    return True


def reads_columns(causal: CausalModel, running: Running) -> bool:
    """Whether every token's logit among some is what it is among all, up to a constant: tried half by half."""
    prompt = _requests(causal)[0].prompt
    packed = pack([prompt])
    every = np.arange(causal.vocabulary)

    def read(tokens: Rows, columns: Rows | None) -> Score:
        passes = Passes(causal, PrefixCache(64), Pool(64, 0, causal.place.device), chunk_rows=64)
        fresh, slots = np.ones(packed.rows, bool), np.full((1, packed.rows), -1, np.int64)
        batch = Batch(packed, [WeightsVersion("trial", causal.depth)], fresh, slots, 0, causal.depth)
        rows = np.full(len(tokens), packed.rows - 1)
        return passes.run(batch, running, Reads((rows,), (tokens,), columns))[0][0]

    try:
        known = read(every, None)
        parts = np.array_split(every, 2)
        found = [read(part, part) for part in parts]
    except Exception:  # any model's own code runs here
        return False
    offsets = [own - known[part] for part, own in zip(parts, found, strict=True)]
    return all(_same(causal, offset, offset[:1]) for offset in offsets)


def _same(causal: CausalModel, a: Score, b: Score) -> bool:
    # bfloat16: two of the model's own attention kernels differ as much; float64: models take their softmax in float32
    tolerance, relative = (0.25, 2**-5) if causal.model.dtype is torch.bfloat16 else (1e-4, 0.0)
    return np.allclose(a, b, rtol=relative, atol=tolerance)


def _requests(causal: CausalModel) -> list[Request]:
    top = min(causal.vocabulary, 512)
    tokens = tuple((7 * i * i + 3 * i + 1) % top for i in range(12))
    return [Request(tokens[:6], tokens[6:9]), Request(tokens[:4], tokens[9:]), Request(tokens[5:9], tokens[:2])]


def _run(passes: Passes, requests: Sequence[Request], cut: int) -> list[Score]:
    """Log-probabilities by the packed pass, with what lies below layer ``cut`` run apart."""
    version = WeightsVersion("trial", passes.causal.depth)
    common = Common(Sharing("trial", "all", cut, kept=False), WeightsVersion("trial", cut)) if cut else None
    return PackedScorer(passes).score(Job(requests, [version], lambda versions: alone, common)).values[0]


def _obstacle(causal: CausalModel) -> str:
    """Why there is no use in trying, if so."""
    config: Any = causal.model.config.get_text_config()
    if not getattr(causal.model, "_supports_attention_backend", False):
        return "its attention does not go through the attention registry"
    try:
        parameters = inspect.signature(causal.decoder.forward).parameters
    except AttributeError:
        return "it has no decoder of its own"
    if "position_ids" not in parameters:
        return "it takes no position_ids"
    if any(kind in str(getattr(config, "rope_parameters", "")) for kind in BATCH_WIDE_ROTARY):
        return "its rotary embedding follows the longest sequence of a batch"
    if getattr(config, "attention_chunk_size", None):
        return "its attention is chunked"
    return ""


def _slides(causal: CausalModel) -> bool:
    config: Any = causal.model.config.get_text_config()
    return getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
