"""Plain MeZO, as the paper's trainer runs it: the baseline that speed is measured against."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from twinpass.core import Request, Score
from twinpass.objective.base import Objective
from twinpass.task.example import Example


class NaiveMezo:
    """Algorithm 1 of Malladi et al. 2023 (arXiv 2305.17333).

    Weights are rewritten out of place from a global seed, four times a step. Every sequence of the batch, one an answer option,
    is padded to the longest and runs under each sign in a forward of its own, with logits at all positions.

    Args:
        model: a Hugging Face model, or PEFT's around one, on any device.
        parameters: what is trained.
        objective: its loss is minimised.
        lean: as a careful user would write it: weights are moved in place, sequences that several options share run once, and logits
            are made where they are read. The steps are the same.

    ``perturb_seconds`` counts what drawing z and rewriting weights took so far.
    """

    def __init__(
        self, model: nn.Module, parameters: Sequence[nn.Parameter], objective: Objective, *, lean: bool = False
    ) -> None:
        self.lean = lean
        self.model, self.parameters, self.objective = model, parameters, objective
        self.perturb_seconds = 0.0
        model.train(False)

    def step(self, examples: Sequence[Example], seed: int, eps: float, lr: float) -> tuple[float, float]:
        """One step; (L+, L-)."""
        self.perturb(seed, eps)
        plus = self.loss(examples)
        self.perturb(seed, -2 * eps)
        minus = self.loss(examples)
        self.perturb(seed, eps)
        self.perturb(seed, -lr * (plus - minus) / (2 * eps))
        return plus, minus

    def perturb(self, seed: int, scale: float) -> None:
        """``theta + scale z(seed)``."""
        started = time.perf_counter()
        torch.manual_seed(seed)
        for parameter in self.parameters:
            z = torch.normal(mean=0, std=1, size=parameter.shape, dtype=parameter.dtype, device=parameter.device)
            if self.lean:
                parameter.data.add_(z, alpha=scale)
            else:
                parameter.data = parameter.data + scale * z
        self.perturb_seconds += time.perf_counter() - started

    def loss(self, examples: Sequence[Example]) -> float:
        """The batch's mean loss (nats)."""
        return self.objective.loss(examples, self.scores(examples))

    def metric(self, examples: Sequence[Example]) -> float:
        """The batch's mean metric."""
        return self.objective.metric(examples, self.scores(examples))

    def scores(self, examples: Sequence[Example]) -> list[Score]:
        """Log-probabilities of every request's completion."""
        with torch.inference_mode():
            read = lean_logprobs if self.lean else completion_logprobs
            found = read(self.model, self.objective.requests(examples))
            values = torch.cat(found).cpu().numpy()
        return np.split(values, np.cumsum([len(own) for own in found])[:-1])


def completion_logprobs(model: nn.Module, requests: Sequence[Request]) -> list[Any]:
    """One padded batch, logits everywhere; float32 log-probabilities of each completion's tokens, differentiable."""
    longest = max(len(request.inputs) for request in requests)
    ids = torch.zeros(len(requests), longest, dtype=torch.long)
    mask = torch.zeros(len(requests), longest, dtype=torch.long)
    for row, request in enumerate(requests):
        ids[row, : len(request.inputs)] = torch.tensor(request.inputs)
        mask[row, : len(request.inputs)] = 1
    device = next(model.parameters()).device
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    found = []
    for row, request in enumerate(requests):
        start, completion = len(request.prompt) - 1, torch.tensor(request.completion).to(device, non_blocking=True)
        own = torch.log_softmax(logits[row, start : start + len(completion)].float(), -1)
        found.append(own.gather(1, completion[:, None])[:, 0])
    return found


def lean_logprobs(model: nn.Module, requests: Sequence[Request]) -> list[Any]:
    """The same from one padded batch of distinct inputs, padded on the left so that the logits that are read are the last ones."""
    inputs = list(dict.fromkeys(request.inputs for request in requests))
    longest, last = max(map(len, inputs)), max(len(request.completion) for request in requests)
    ids, mask = torch.zeros(2, len(inputs), longest, dtype=torch.long)
    for row, sequence in enumerate(inputs):
        ids[row, longest - len(sequence) :], mask[row, longest - len(sequence) :] = torch.tensor(sequence), 1
    device = next(model.parameters()).device
    places = (mask.cumsum(1) - 1).clamp(min=0)
    arguments = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
    sent = {name: tensor.to(device) for name, tensor in arguments.items()}
    logits = model(**sent, logits_to_keep=last, use_cache=False).logits
    rows, found = {sequence: row for row, sequence in enumerate(inputs)}, []
    for request in requests:
        completion = torch.tensor(request.completion).to(device)
        own = torch.log_softmax(logits[rows[request.inputs], last - len(completion) :].float(), -1)
        found.append(own.gather(1, completion[:, None])[:, 0])
    return found
