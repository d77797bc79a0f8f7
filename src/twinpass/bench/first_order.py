"""LoRA with AdamW and backpropagation through PEFT: a user's usual choice, where gradients and memory are to be had.

As a careful user writes it: options that share a sequence share its pass, and logits are made where they are read.
"""

from collections.abc import Sequence

import torch
from torch import nn

from twinpass.bench.naive import lean_logprobs
from twinpass.objective.base import Objective
from twinpass.task.example import Example


class FirstOrder:
    """One AdamW step a batch on an objective.

    Args:
        model: PEFT's model around a Hugging Face model.
        parameters: its adapters.
        lr: the learning rate, constant; weight decay is 0.
        low: whether products are in bfloat16, by PyTorch's autocast.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        objective: Objective,
        lr: float,
        *,
        low: bool = False,
    ) -> None:
        self.model, self._low, self._objective = model, low, objective
        self._optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)

    def step(self, examples: Sequence[Example]) -> float:
        """The batch's mean loss (nats), before the step."""
        self.model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=self._low):
            found = lean_logprobs(self.model, self._objective.requests(examples))
        scores = [own.detach().double().numpy() for own in found]
        slopes = self._objective.gradient(examples, scores)
        self._optimizer.zero_grad()
        torch.autograd.backward(
            found, [torch.from_numpy(slope).to(own) for slope, own in zip(slopes, found, strict=True)]
        )
        self._optimizer.step()
        return self._objective.loss(examples, scores)
