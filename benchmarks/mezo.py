"""Plain MeZO as the paper runs it (Malladi et al. 2023, Algorithm 1): the baseline that benchmarks are measured against.

Weights are rewritten in place from ``torch.manual_seed`` four times a step; every sequence of the batch, one an
answer option, is padded to the longest and run under each sign with logits at all positions.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from twinpass.core import Request
from twinpass.task.template import Example

Loss = float


def perturb(parameters: Iterable[Tensor], seed: int, scale: float) -> None:
    """``theta += scale * z(seed)``."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=scale)


def logprobs(model: nn.Module, requests: Sequence[Request]) -> list[float]:
    """The sum of each completion's log-probabilities: one padded batch, logits everywhere."""
    longest = max(len(request.inputs) for request in requests)
    ids = torch.zeros(len(requests), longest, dtype=torch.long)
    mask = torch.zeros(len(requests), longest, dtype=torch.long)
    for row, request in enumerate(requests):
        ids[row, : len(request.inputs)] = torch.tensor(request.inputs)
        mask[row, : len(request.inputs)] = 1
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    sums = []
    for row, request in enumerate(requests):
        start = len(request.prompt) - 1
        own = torch.log_softmax(logits[row, start : start + len(request.completion)].float(), -1)
        sums.append(float(own[range(len(request.completion)), request.completion].sum()))
    return sums


def loss(model: nn.Module, requests: Sequence[Request], examples: Sequence[Example]) -> Loss:
    """Cross-entropy over the options of each example, averaged."""
    sums = torch.tensor(logprobs(model, requests)).view(len(examples), -1)
    return float(nn.functional.cross_entropy(sums, torch.tensor([example.label for example in examples])))


def step(
    model: nn.Module,
    parameters: Sequence[Tensor],
    requests: Sequence[Request],
    examples: Sequence[Example],
    *,
    seed: int,
    eps: float,
    lr: float,
) -> tuple[Loss, Loss]:
    """One step of Algorithm 1; returns (L+, L-)."""
    perturb(parameters, seed, eps)
    plus = loss(model, requests, examples)
    perturb(parameters, seed, -2 * eps)
    minus = loss(model, requests, examples)
    perturb(parameters, seed, eps)
    perturb(parameters, seed, -lr * (plus - minus) / (2 * eps))
    return plus, minus
