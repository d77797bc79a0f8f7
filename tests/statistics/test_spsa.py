"""Two-sided SPSA against the exact directional derivative, in float64: the error falls with the square of eps."""

from typing import Any

import numpy as np
import pytest
import torch
from architectures import build

from twinpass.core import Probe
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.estimate.spsa import Spsa
from twinpass.model.trainable import Full
from twinpass.objective.choice import Choice
from twinpass.perturb.noise import DISTRIBUTIONS, Distribution, reference
from twinpass.task.example import Example

EXAMPLES = [Example((1, 8, 6, 5, 2), ((3,), (4,)), 1, 4), Example((1, 7, 10, 2), ((3, 5), (4,)), 0, 3)]
PROBES = [Probe(seed) for seed in (11, 12, 13)]


@pytest.mark.parametrize("noise", DISTRIBUTIONS)
def test_bias_is_of_second_order(noise: Distribution) -> None:
    model = build("gpt2", torch.float64)
    engine = TorchEngine(model, Full(), noise=noise)
    exact = directional(engine, noise)
    spsa, choice = Spsa(probes=3), Choice()
    scales = [10.0**-k for k in (2.5, 3.0, 3.5, 4.0)]
    errors = []
    for eps in scales:
        scores = engine.score(choice.requests(EXAMPLES), spsa.lanes(PROBES, eps))
        losses = [choice.loss(EXAMPLES, values) for values in scores.values]
        errors.append(np.abs(np.array(spsa.estimate(PROBES, eps, losses).gradients) - exact).mean())
    slope = np.polyfit(np.log10(scales), np.log10(errors), 1)[0]
    assert slope == pytest.approx(2, abs=0.1)
    assert errors[-1] < 1e-3 * np.abs(exact).mean()


def directional(engine: TorchEngine, noise: Distribution) -> np.ndarray:
    """``z . grad L`` by backpropagation."""
    model = engine.model
    losses = []
    for example in EXAMPLES:
        logits = []
        for option in example.options:
            ids = torch.tensor([example.prompt + option])
            logprobs = torch.log_softmax(model(input_ids=ids).logits[0, len(example.prompt) - 1 : -1], -1)
            logits.append(logprobs[range(len(option)), option].sum())
        losses.append(torch.logsumexp(torch.stack(logits), 0) - logits[example.label])
    mean: Any = torch.stack(losses).mean()
    mean.backward()
    slopes = np.zeros(len(PROBES))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        gradient = parameter.grad.numpy().reshape(-1)
        for k, probe in enumerate(PROBES):
            slopes[k] += gradient @ reference(probe.seed, name, 0, gradient.size, noise).astype(np.float64)
    return slopes
