"""Write texts by the model's own forward, where a model cannot be packed: every token reads the whole text again."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from twinpass.core import Continuation, Decode, Prompt, Sampling
from twinpass.engine.embedded.linear.lanes import LaneLayout, Running
from twinpass.engine.embedded.scoring.choosing import choose
from twinpass.engine.embedded.scoring.passes import LOGITS_BYTES
from twinpass.engine.embedded.scoring.writing import Growing
from twinpass.model.causal import CausalModel


def write_plain(
    causal: CausalModel,
    prompts: Sequence[Prompt],
    starts: Sequence[int],
    running: Running,
    sampling: Sampling,
    decode: Decode,
) -> tuple[list[Continuation], int]:
    """Continuations under one lane, and how many rows ran; texts of equal length run together. ``starts`` are activation points."""
    grown = [Growing(prompt) for prompt in prompts]
    active, ran = list(range(len(prompts))), 0
    while active:
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i in active:
            alike[len(prompts[i].tokens) + len(grown[i].tokens), starts[i]].append(i)
        active = []
        for (length, active_from), members in alike.items():
            step = max(1, LOGITS_BYTES // (4 * length * causal.vocabulary))
            for first in range(0, len(members), step):
                part = members[first : first + step]
                texts = np.array([(*prompts[i].tokens, *grown[i].tokens) for i in part], np.int64)
                with torch.no_grad(), running(LaneLayout(1, length, active_from)):
                    logits = causal.logits(*causal.device.send(texts))[:, -1]
                ran += texts.size
                done = [len(grown[i].tokens) for i in part]
                tokens, logprobs = choose(logits, [prompts[i] for i in part], done, sampling)
                for i, token, logprob in zip(part, tokens.tolist(), logprobs.tolist(), strict=True):
                    if grown[i].add(token, logprob, sampling, decode):
                        active.append(i)
    return [one.finished(decode) for one in grown], ran
