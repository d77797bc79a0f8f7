"""Choose the next token of many continuations from their logits."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from twinpass.core import Prompt, Sampling
from twinpass.model.causal import log_softmax
from twinpass.perturb.race import gumbel

BLOCK = 1 << 20
"""Logits that are looked at at a time: what is made of them stays in the processor's cache."""


def choose(
    logits: Tensor, prompts: Sequence[Prompt], positions: Sequence[int], sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """The token [N] that each row of ``logits`` [N, vocabulary] gives, and its log-probability.

    Lanes that continue the same prompt at the same place share the noise, and so stand beside each other.

    Args:
        prompts: whose continuation each row is of.
        positions: how many tokens of it there are before, [N].
    """
    names = [f"{prompt.row}/{prompt.sample}/{at}" for prompt, at in zip(prompts, positions, strict=True)]
    order = sorted(range(len(names)), key=names.__getitem__)
    step = max(1, BLOCK // logits.shape[-1])
    found = []
    for start in range(0, len(order), step):
        rows = order[start : start + step]
        logprobs = log_softmax(logits[rows])
        greedy = sampling.temperature == 0
        tokens = logprobs.argmax(-1) if greedy else _sample(logprobs, [names[row] for row in rows], sampling)
        found.append((tokens, logprobs.gather(-1, tokens[:, None])[:, 0]))
    back = torch.tensor(order, device=logits.device).argsort()
    tokens, logprobs = (torch.cat(parts)[back] for parts in zip(*found, strict=True))
    return tokens, logprobs


def _sample(logprobs: Tensor, names: Sequence[str], sampling: Sampling) -> Tensor:
    """The largest of logits and Gumbel noise; rows of the same name share it."""
    distinct, which = np.unique(names, return_inverse=True)
    noise = torch.from_numpy(gumbel(sampling.seed, distinct.tolist(), logprobs.shape[-1])).to(logprobs.device)
    scaled = logprobs if sampling.temperature == 1 else logprobs / sampling.temperature
    return (truncated(scaled, sampling.top_k, sampling.top_p) + noise[which]).argmax(-1)


def truncated(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits [N, vocabulary] with -inf where a token is not among the ``top_k`` likeliest, or beyond ``top_p`` of what is left."""
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        values, order = logits.sort(dim=-1, descending=True, stable=True)
        probabilities = values.softmax(-1)
        beyond = probabilities.cumsum(-1) - probabilities >= top_p
        beyond[:, 0] = False
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter_(-1, order, beyond), -torch.inf)
    return logits
