"""Try a model on a few short sequences: does the packed pass return what its own forward returns?

Both run in float64 (:class:`Raised`), whatever the model's dtype. So they agree to some 1e-12 where they compute the same, on any
processor, and a wrong mask, position or window, or an argument of the attention that is left out, stands out by orders of magnitude.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from twinpass.cache.pool import Pool
from twinpass.cache.prefix_cache import PrefixCache
from twinpass.core import Request, Score, WeightsVersion
from twinpass.engine.embedded.linear.lanes import Running
from twinpass.engine.embedded.linear.products import Linear
from twinpass.engine.embedded.scoring.indices import NOWHERE
from twinpass.engine.embedded.scoring.jobs import Job, SharedByLanes
from twinpass.engine.embedded.scoring.packing import Reads, Rows, pack
from twinpass.engine.embedded.scoring.passes import Batch, Passes, alone
from twinpass.engine.embedded.scoring.plain import score_plain
from twinpass.engine.embedded.scoring.raised import Raised
from twinpass.engine.embedded.scoring.scorer import PackedScorer
from twinpass.model.causal import CausalModel
from twinpass.reuse.base import Sharing

ROUNDING = 2.0**-20
"""What float32 rounds by, as a part of the largest log-probability: far more than float64 does, far less than a wrong mask."""

LENGTH = 12
"""Tokens of a tried sequence, where the model takes as many."""

ROOM = 64
"""Tokens that are enough for all of them."""

BATCH_WIDE_ROTARY = ("dynamic", "longrope")
"""Rotary scalings that follow the longest sequence of a batch: sequences cannot share a pass exactly."""


@dataclass(frozen=True, slots=True)
class PackingCheck:
    """Whether a model ``packs``, the ``reason`` if not, and the bytes of a token's keys and values by layer.

    ``hidden_bytes`` are those of a token's state between two layers.
    """

    packs: bool
    reason: str = ""
    layer_bytes: tuple[int, ...] = ()
    hidden_bytes: int = 0

    @classmethod
    def of(cls, causal: CausalModel, cut: int) -> "PackingCheck":
        """Try a model, with what lies below layer ``cut`` run apart."""
        if reason := _obstacle(causal):
            return cls(False, reason)
        passes = _passes(causal, cut)
        try:
            _run(passes, _requests(causal), cut)
        except Exception as error:  # any model's own code runs here
            return cls(False, f"{type(error).__name__}: {error}")
        if sorted(passes.layer_bytes) != list(range(causal.depth)):
            return cls(False, "its attention does not go through the attention registry, layer by layer")
        if _slides(causal) and passes.windows <= {None}:
            return cls(False, "its attention does not pass its sliding window on")
        try:
            found = Difference.of(causal, cut)
        except Exception as error:  # any model's own code runs here
            return cls(False, f"in float64: {type(error).__name__}: {error}")
        if not found.off <= found.allowed:
            figures = f"{found.off:.2g} of {found.largest:.2g} nats, where rounding makes less than {found.allowed:.1g}"
            return cls(False, f"in float64 its scores differ by {figures}")
        size = int(causal.model.config.get_text_config().hidden_size) * causal.model.dtype.itemsize
        return cls(True, "", tuple(passes.layer_bytes[i] for i in range(causal.depth)), size)


def still_runs(causal: CausalModel, cut: int, linear: Linear | None) -> bool:
    """Whether a model that packs does so after a change to how its weights are held, multiplied by ``linear``."""
    try:
        _run(_passes(causal, cut, linear), _requests(causal), cut)
    except Exception:  # any model's own code runs here
        return False
    return True


def sees_ahead(causal: CausalModel) -> bool:
    """Whether a token changes what the model's own forward tells of those before it, as in an encoder; one that packs does not."""
    inputs = _requests(causal)[0].inputs
    other = *inputs[:-1], (inputs[-1] + 1) % causal.vocabulary
    with torch.no_grad(), Raised():
        try:
            own, changed = (causal.logits(*causal.device.send(np.array([ids]))) for ids in (inputs, other))
        except Exception:  # any model's own code runs here
            return False
    off = float((own - changed)[0, :-1].abs().max())
    return off > ROUNDING * max(1.0, float(own.abs().max()))


def reads_columns(causal: CausalModel, running: Running) -> bool:
    """Whether every token's logit among some is what it is among all, up to a constant: tried half by half."""
    prompt = _requests(causal)[0].prompt
    packed = pack([prompt])
    every = np.arange(causal.vocabulary)

    def read(tokens: Rows, columns: Rows | None) -> Score:
        fresh, slots = np.ones(packed.rows, bool), np.full((1, packed.rows), NOWHERE, np.int64)
        batch = Batch(packed, [WeightsVersion("packing check", causal.depth)], fresh, slots, 0, causal.depth)
        rows = np.full(len(tokens), packed.rows - 1)
        return _passes(causal, 0).run(batch, running, Reads((rows,), (tokens,), columns))[0][0]

    try:
        known = read(every, None)
        parts = np.array_split(every, 2)
        found = [read(part, part) for part in parts]
    except Exception:  # any model's own code runs here
        return False
    # one rounding of bfloat16 is 2**-8; sums of the other dtypes' products round more often than once, a wrong column is off by 1
    relative = 2.0**-5 if causal.model.dtype is torch.bfloat16 else 2.0**-14
    offsets = [own - known[part] for part, own in zip(parts, found, strict=True)]
    return all(float(np.ptp(offset)) <= relative * max(1.0, float(np.abs(known).max())) for offset in offsets)


@dataclass(frozen=True, slots=True)
class Difference:
    """How far the packed pass and the model's own forward are apart in float64: ``off``, of log-probabilities up to ``largest``."""

    off: float
    largest: float

    @classmethod
    def of(cls, causal: CausalModel, cut: int = 0) -> "Difference":
        """Measure it, with what lies below layer ``cut`` run apart."""
        requests = _requests(causal)
        with Raised():
            packed = np.concatenate(_run(_passes(causal, cut), requests, cut))
            plain = np.concatenate(score_plain(causal, requests, [0] * len(requests), alone))
        return cls(float(np.abs(packed - plain).max()), max(1.0, float(np.abs(plain).max())))

    @property
    def allowed(self) -> float:
        """The largest ``off`` (nats) that rounding in float64 explains."""
        return ROUNDING * self.largest


def _requests(causal: CausalModel) -> list[Request]:
    """Three sequences of one length: two begin alike, and are read from different tokens on."""
    top, length = min(causal.vocabulary, 512), min(LENGTH, causal.window or LENGTH)
    tokens = tuple((7 * i * i + 3 * i + 1) % top for i in range(2 * length))
    half, most = length // 2, length - length // 4
    return [
        Request(tokens[:most], tokens[most:length]),
        Request(tokens[:half], tokens[length : 2 * length - half]),
        Request(tokens[length - 1 : length + most - 1], tokens[: length - most]),
    ]


def _passes(causal: CausalModel, cut: int, linear: Linear | None = None) -> Passes:
    return Passes(
        causal, PrefixCache(ROOM), Pool(ROOM, cut, causal.device.torch_device), chunk_rows=ROOM, linear=linear
    )


def _run(passes: Passes, requests: Sequence[Request], cut: int) -> list[Score]:
    """Log-probabilities by the packed pass, with what lies below layer ``cut`` run apart."""
    version = WeightsVersion("packing check", passes.causal.depth)
    shared_by_lanes = (
        SharedByLanes(Sharing("packing check", "all", cut, kept=False), WeightsVersion("packing check", cut))
        if cut
        else None
    )
    return PackedScorer(passes).score(Job(requests, [version], lambda versions: alone, shared_by_lanes)).values[0]


def _obstacle(causal: CausalModel) -> str:
    """Why the model cannot be packed, where that is known without trying it; empty: it has to be tried."""
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
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None or any("sliding" in str(kind) for kind in kinds)
    return (
        slides and getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    )
