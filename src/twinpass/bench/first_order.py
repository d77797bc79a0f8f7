"""LoRA with AdamW and backpropagation through PEFT: a user's usual choice, where gradients and memory are to be had."""

from collections.abc import Sequence

import torch
from torch import nn

from twinpass.bench.naive import completion_logprobs
from twinpass.objective.choice import Choice
from twinpass.task.example import Example


class FirstOrder:
    """One AdamW step a batch on the cross-entropy of the right option.

    Args:
        model: PEFT's model around a Hugging Face model.
        parameters: its adapters.
        lr: the learning rate, constant; weight decay is 0.
        low: whether products are in bfloat16, by PyTorch's autocast.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter], lr: float, *, low: bool = False) -> None:
        self.model, self._low = model, low
        self._optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)

    def step(self, examples: Sequence[Example]) -> float:
        """The batch's mean loss (nats), before the step."""
        self.model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=self._low):
            sums = [own.sum() for own in completion_logprobs(self.model, Choice().requests(examples))]
        losses, start = [], 0
        for example in examples:
            logits = torch.stack(sums[start : start + len(example.options)])
            losses.append(nn.functional.cross_entropy(logits[None], torch.tensor([example.label])))
            start += len(example.options)
        loss = torch.stack(losses).mean()
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return float(loss.detach())
