"""Score by the model's own forward, one lane at a time, where a model cannot be packed."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from twinpass.core import Request, Score
from twinpass.engine.embedded.linear.lanes import LaneLayout, Running
from twinpass.engine.embedded.scoring.passes import LOGITS_BYTES
from twinpass.model.causal import CausalModel, log_softmax


def score_plain(
    causal: CausalModel, requests: Sequence[Request], starts: Sequence[int], running: Running
) -> list[Score]:
    """Run sequences of equal length together, without padding; ``starts`` are their activation points."""
    with torch.no_grad():
        return [score.double().cpu().numpy() for score in trace_plain(causal, requests, starts, running)]


def trace_plain(
    causal: CausalModel, requests: Sequence[Request], starts: Sequence[int], running: Running
) -> list[Tensor]:
    """The same as tensors; with a graph, unless there is to be none."""
    scores: dict[int, Tensor] = {}
    for length, active_from, part in equally_long(requests, starts, LOGITS_BYTES // (4 * causal.vocabulary)):
        with running(LaneLayout(1, length, active_from)):
            logits = causal.logits(*causal.device.send(np.array([requests[i].inputs for i in part], np.int64)))
        for i, row in zip(part, logits, strict=True):
            request = requests[i]
            logprobs = log_softmax(row[len(request.prompt) - 1 :])
            (targets,) = causal.device.send(np.array(request.completion, np.int64)[:, None])
            scores[i] = logprobs.gather(1, targets)[:, 0]
    return [scores[i] for i in range(len(requests))]


def equally_long(
    requests: Sequence[Request], starts: Sequence[int], tokens: int
) -> Iterator[tuple[int, int, list[int]]]:
    """Batches that need no padding: the inputs' length, their activation point, and the indices of at most ``tokens`` / length requests, or of one."""
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, (request, start) in enumerate(zip(requests, starts, strict=True)):
        alike[len(request.inputs), start].append(i)
    for (length, start), members in alike.items():
        step = max(1, tokens // length)
        for first in range(0, len(members), step):
            yield length, start, members[first : first + step]
