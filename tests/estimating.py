"""Single steps on a tiny model in float64, under any estimator and policy: what estimates are compared by."""

from collections.abc import Sequence

import numpy as np
import pytest
from architectures import Float64Softmax, build
from numpy.typing import NDArray

from twinpass.core import Probe, Score, StepReport, Term
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.estimate.base import Estimator
from twinpass.estimate.spsa import Spsa
from twinpass.model.trainable import Full
from twinpass.objective.choice import Choice
from twinpass.reuse.base import Policy
from twinpass.reuse.plan import Situation
from twinpass.reuse.reflected import Reflected
from twinpass.task.example import Example
from twinpass.train.step import Draw, Method, measure

forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
"""PyTorch scripts some derivatives when the first dual number is made."""

HEAD = (9, 8, 7, 6, 5, 4, 3)
EXAMPLES = [
    Example((*HEAD, 1, 8, 6, 5, 2), ((3,), (4,)), 1, 11),
    Example((*HEAD, 1, 7, 10, 2), ((3, 5), (4,)), 0, 9),
    Example((*HEAD, 2, 2), ((3,), (4, 6)), 1, 8),
]
"""Prompts that begin alike, and of which all but the last token or two is prefix."""

PROBES = [Probe(seed) for seed in range(100, 116)]


class Likelihood(Choice):
    """Minus the mean log-probability of all options: linear in the scores, so that ``jvp`` is exact to rounding."""

    def loss(self, examples: Sequence[Example], scores: Sequence[Score]) -> float:
        return -float(np.mean([score.sum() for score in scores]))


def engine() -> TorchEngine:
    """GPT-2, whose norms keep float64; room for every approximation."""
    return TorchEngine(build("gpt2"), Full(), reuse=Reflected())


def step(
    on: TorchEngine,
    estimator: Estimator,
    policy: Policy,
    eps: float,
    history: Sequence[StepReport] = (),
    coin: float = 1.0,
    trials: Sequence[float] = (),
) -> StepReport:
    """One step's report, as the trainer would get it."""
    with Float64Softmax():
        draw = Draw(len(history), EXAMPLES, PROBES[: estimator.probes], eps, 0.0, trials=trials)
        return measure(on, Method(estimator, Likelihood(), policy.planner()), draw, Situation(on.layers, history, coin))


def gradients(
    on: TorchEngine, estimator: Estimator, policy: Policy, eps: float, history: Sequence[StepReport] = ()
) -> NDArray[np.float64]:
    return np.array(step(on, estimator, policy, eps, history).estimate.gradients)


def second_step(on: TorchEngine, policy: Policy, eps: float, probes: int = len(PROBES)) -> StepReport:
    """The step after the one that measured and, where the policy carries, refreshed; the weights stay."""
    first = step(on, Spsa(probes), policy, eps)
    on.update([])
    return step(on, Spsa(probes), policy, eps, [first])


def term(probe: Probe, scale: float) -> Term:
    return Term(probe.seed, scale)


def rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """How ``y`` grows with ``x``: the exponent, by linear regression of logarithms."""
    return float(np.polyfit(np.log10(x), np.log10(y), 1)[0])
