"""One forward pass over packed rows, or over plain sequences where a model cannot be packed."""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from twinpass.core import Request, Score
from twinpass.engine.embedded.attention import AttentionPlan, packed_attention
from twinpass.engine.embedded.lanes import LaneLayout
from twinpass.engine.embedded.packing import Packed, pack

LOGITS_BYTES = 64 << 20
"""Largest logits tensor; more positions are read in blocks."""

BATCH_WIDE_ROTARY = ("dynamic", "longrope")
"""Rotary scalings that follow the longest sequence of a batch: sequences cannot share a pass exactly."""

Running = Callable[[Callable[[], LaneLayout]], AbstractContextManager[None]]
"""Opens the tandem around a pass; its argument tells how lanes lie in the rows at that moment."""


def alone(layout: Callable[[], LaneLayout]) -> AbstractContextManager[None]:
    """A pass of the model as it is."""
    return nullcontext()


def score_packed(model: PreTrainedModel, packed: Packed, plan: AttentionPlan, running: Running) -> list[list[Score]]:
    """Run all lanes of a batch as one row of tokens; ``[lane][request]`` log-probabilities.

    The decoder runs once; the model's own head then reads the wanted positions, block by block.
    """
    lanes = plan.lanes
    ids = torch.from_numpy(np.tile(packed.tokens, lanes))[None]
    positions = torch.from_numpy(np.tile(packed.positions, lanes))[None]
    rows, which = np.unique(np.concatenate(packed.reads), return_inverse=True)
    targets = np.concatenate(packed.targets)
    values = np.empty((lanes, len(targets)))
    block = max(1, LOGITS_BYTES // (4 * lanes * _vocabulary(model)))
    decoder = _decoder(model)
    layout = LaneLayout(lanes, packed.rows)
    with torch.no_grad(), packed_attention(model, plan), running(lambda: layout):
        output = decoder(input_ids=ids, position_ids=positions, use_cache=False)
        for start in range(0, len(rows), block):
            wanted = torch.from_numpy(rows[start : start + block])
            layout = LaneLayout(lanes, len(wanted))
            index = (torch.arange(lanes)[:, None] * packed.rows + wanted).reshape(-1)
            with _decoder_returns(decoder, output, output.last_hidden_state[:, index]):
                logits = model(input_ids=ids[:, index], use_cache=False).logits
            logprobs = _log_softmax(logits[0]).view(lanes, len(wanted), -1)
            here = np.flatnonzero((which >= start) & (which < start + len(wanted)))
            values[:, here] = logprobs[:, which[here] - start, targets[here]].numpy()
    bounds = np.cumsum([len(t) for t in packed.targets])[:-1]
    return [np.split(lane, bounds) for lane in values]


def score_plain(model: PreTrainedModel, requests: Sequence[Request], running: Running) -> list[Score]:
    """Run one lane by the model's own forward, sequences of equal length together, without padding."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, request in enumerate(requests):
        by_length[len(request.inputs)].append(i)
    scores: dict[int, Score] = {}
    for length, members in by_length.items():
        step = max(1, LOGITS_BYTES // (4 * length * _vocabulary(model)))
        for start in range(0, len(members), step):
            part = members[start : start + step]
            with torch.no_grad(), running(lambda: LaneLayout(1, 1)):
                logits = model(input_ids=torch.tensor([requests[i].inputs for i in part]), use_cache=False).logits
            for i, row in zip(part, logits, strict=True):
                request = requests[i]
                logprobs = _log_softmax(row[len(request.prompt) - 1 :])
                scores[i] = logprobs[range(len(request.completion)), request.completion].double().numpy()
    return [scores[i] for i in range(len(requests))]


def packable(model: PreTrainedModel) -> bool:
    """Whether the packed pass returns what the model's own forward returns, tried on a few short sequences."""
    if not getattr(model, "_supports_attention_backend", False):
        return False
    if "position_ids" not in inspect.signature(_decoder(model).forward).parameters:
        return False
    if any(kind in str(getattr(model.config.get_text_config(), "rope_parameters", "")) for kind in BATCH_WIDE_ROTARY):
        return False
    top = min(_vocabulary(model), 512)
    tokens = tuple((7 * i * i + 3 * i + 1) % top for i in range(12))
    requests = [Request(tokens[:6], tokens[6:9]), Request(tokens[:4], tokens[9:]), Request(tokens[5:9], tokens[:2])]
    packed = pack(requests)
    plan = AttentionPlan(packed, lanes=1)
    together = score_packed(model, packed, plan, alone)[0]
    config = model.config.get_text_config()
    slides = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    if slides and plan.windows <= {None}:
        return False
    tolerance = 0.25 if model.dtype is torch.bfloat16 else 1e-3
    apart = score_plain(model, requests, alone)
    return all(np.allclose(a, b, rtol=0, atol=tolerance) for a, b in zip(together, apart, strict=True))


@contextmanager
def _decoder_returns(decoder: torch.nn.Module, output: ModelOutput, hidden: Tensor) -> Iterator[None]:
    """Let the model's own head run on hidden states that the decoder has already computed."""
    part = copy(output)
    part["last_hidden_state"] = hidden
    decoder.__dict__["forward"] = lambda *args, **kwargs: part
    try:
        yield
    finally:
        del decoder.__dict__["forward"]


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, -1, dtype=torch.float64 if logits.dtype is torch.float64 else torch.float32)


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)


def _decoder(model: PreTrainedModel) -> torch.nn.Module:
    decoder: torch.nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
    return decoder
