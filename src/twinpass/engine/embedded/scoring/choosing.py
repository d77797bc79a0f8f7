"""Choose the next token of many continuations from their logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from twinpass.core import Prompt, Sampling
from twinpass.model.causal import log_softmax
from twinpass.perturb.race import gumbel


def choose(
    logits: Tensor, prompts: Sequence[Prompt], positions: Sequence[int], sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """The token [N] that each row of ``logits`` [N, vocabulary] gives, and its log-probability.

    Args:
        prompts: whose continuation each row is of.
        positions: how many tokens of it there are before, [N].
    """
    logprobs = log_softmax(logits)
    tokens = logprobs.argmax(-1) if sampling.temperature == 0 else _sample(logprobs, prompts, positions, sampling)
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


def _sample(logprobs: Tensor, prompts: Sequence[Prompt], positions: Sequence[int], sampling: Sampling) -> Tensor:
    """The largest of logits and Gumbel noise; lanes that continue the same prompt at the same place share the noise."""
    names = [f"{prompt.row}/{prompt.sample}/{at}" for prompt, at in zip(prompts, positions, strict=True)]
    distinct = {name: i for i, name in enumerate(dict.fromkeys(names))}
    noise = torch.from_numpy(gumbel(sampling.seed, list(distinct), logprobs.shape[-1])).to(logprobs.device)
    kept = truncated(logprobs / sampling.temperature, sampling.top_k, sampling.top_p)
    return (kept + noise[[distinct[name] for name in names]]).argmax(-1)


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
