"""A linear probe: logistic regression on a hidden state, what a careful user tries first on a small choice among options."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twinpass.model.causal import CausalModel
from twinpass.task.example import Example

RIDGES = (1e-3, 1e-2, 1e-1)
SHARES = (0.27, 0.5, 0.73, 0.87, 1.0)
"""After which layers a hidden state is tried, as shares of the depth."""

BATCH = 32
APART = 5
"""One training row in so many is held apart to choose layer and ridge by."""


@dataclass(frozen=True)
class Fitted:
    """A probe after ``layer``: class scores are ``((x - mean) / scale) weight + bias``."""

    layer: int
    ridge: float
    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def accuracy(self, states: Tensor, labels: Tensor) -> float:
        """Share of rows [n, layers, size] that come out right."""
        return float((self.scores(states).argmax(1) == labels).double().mean())

    def scores(self, states: Tensor) -> Tensor:
        """Class scores [n, classes]."""
        return ((states[:, self.layer] - self.mean) / self.scale) @ self.weight + self.bias


class LinearProbe:
    """Hidden states of the last prompt token after several layers of a model, and regressions on them."""

    def __init__(self, causal: CausalModel) -> None:
        self.causal = causal
        self.layers = sorted({max(1, round(share * causal.depth)) for share in SHARES})

    def states(self, examples: Sequence[Example]) -> Tensor:
        """[examples, layers, size], in float32; rows of like length run together."""
        found: dict[int, Tensor] = {}
        order = sorted(range(len(examples)), key=lambda i: len(examples[i].prompt))
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            prompts = [examples[i].prompt for i in part]
            longest = max(map(len, prompts))
            ids, mask = torch.zeros(2, len(part), longest, dtype=torch.long)
            for row, prompt in enumerate(prompts):
                ids[row, : len(prompt)], mask[row, : len(prompt)] = torch.tensor(prompt), 1
            with torch.inference_mode():
                every = self.causal.decoder(
                    input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
                ).hidden_states
                for row, i in enumerate(part):
                    found[i] = torch.stack([every[layer][row, len(prompts[row]) - 1].float() for layer in self.layers])
        return torch.stack([found[i] for i in range(len(examples))]).clone()

    def fit(self, states: Tensor, labels: Tensor) -> Fitted:
        """The best layer and ridge on rows held apart, then all rows."""
        apart = torch.arange(len(labels)) % APART == 0
        tried = []
        for layer in range(len(self.layers)):
            for ridge in RIDGES:
                own = regress(states[~apart], labels[~apart], layer, ridge)
                loss = torch.nn.functional.cross_entropy(own.scores(states[apart]), labels[apart])
                tried.append((-own.accuracy(states[apart], labels[apart]), float(loss), layer, ridge))
        _, _, layer, ridge = min(tried)
        return regress(states, labels, layer, ridge)


def regress(states: Tensor, labels: Tensor, layer: int, ridge: float) -> Fitted:
    """Multinomial logistic regression by L-BFGS; ``ridge`` times half the squared weights is added to the mean loss."""
    x = states[:, layer]
    mean, scale = x.mean(0), (x - x.mean(0)).std() + 1e-6
    x = (x - mean) / scale
    weight = torch.zeros(x.shape[1], int(labels.max()) + 1, requires_grad=True)
    bias = torch.zeros(weight.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weight + bias, labels) + ridge / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]
    return Fitted(layer, ridge, mean, scale, weight.detach(), bias.detach())


def seconds_of(probe: LinearProbe, examples: Sequence[Example]) -> tuple[Fitted, float]:
    """A probe fitted to examples, and how long states and regressions took."""
    started = time.perf_counter()
    fitted = probe.fit(probe.states(examples), torch.tensor([example.label for example in examples]))
    return fitted, time.perf_counter() - started
