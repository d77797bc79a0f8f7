"""Choose the next token of many continuations from their logits."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from twinpass.core import Prompt, Sampling
from twinpass.model.causal import log_softmax
from twinpass.perturb.race import gumbel, pick

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
        found.append(_chosen(logits, rows, [names[row] for row in rows], sampling))
    back = torch.tensor(order, device=logits.device).argsort()
    tokens, logprobs = (torch.cat(parts)[back] for parts in zip(*found, strict=True))
    return tokens, logprobs


def _chosen(logits: Tensor, rows: Sequence[int], names: Sequence[str], sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Tokens and log-probabilities of some rows: the largest of log-probabilities and Gumbel noise, which rows of the same name share."""
    size = logits.shape[-1]
    distinct, which = np.unique(names if sampling.temperature else names[:0], return_inverse=True)
    noise = gumbel(sampling.seed, distinct.tolist(), size)
    if logits.dtype is torch.float32 and logits.device.type == "cpu" and _whole(sampling, size):
        tokens, logprobs = pick(logits.numpy(), np.array(rows), noise, which, sampling.temperature)
        return torch.from_numpy(tokens), torch.from_numpy(logprobs)
    every = log_softmax(logits[list(rows)])
    scores = every
    if sampling.temperature:
        scaled = every if sampling.temperature == 1 else every / sampling.temperature
        scores = truncated(scaled, sampling.top_k, sampling.top_p) + torch.from_numpy(noise).to(every.device)[which]
    chosen = scores.argmax(-1)
    return chosen, every.gather(-1, chosen[:, None])[:, 0]


def _whole(sampling: Sampling, size: int) -> bool:
    """Whether all of ``size`` tokens may come."""
    return sampling.temperature == 0 or (sampling.top_p >= 1 and not 0 < sampling.top_k < size)


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
