"""Gauss-Newton steps in the span of probes, on a loss whose exact answer is known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from twinpass.core import Probe, Score
from twinpass.estimate.gauss_newton import FURTHEST, GaussNewton
from twinpass.objective.choice import Choice
from twinpass.objective.completion import Completion
from twinpass.task.example import Example

EPS = 1e-4
EXAMPLES = [Example((1, 2), ((3,), (4,), (5,)), label, 1) for label in (0, 2, 1, 1)]
TEXTS = [Example((1, 2), (tuple(range(3, 3 + length)),), 0, 1) for length in (2, 5, 3)]


@dataclass(frozen=True)
class Linear:
    """Scores that depend on q numbers linearly: ``base[request] + slopes[request] @ c``."""

    base: Sequence[Score]
    slopes: Sequence[NDArray[np.float64]]

    def at(self, c: NDArray[np.float64]) -> list[Score]:
        return [b + s @ c for b, s in zip(self.base, self.slopes, strict=True)]


def linear(examples: Sequence[Example], q: int) -> Linear:
    generator = np.random.default_rng(2)
    lengths = [len(option) for example in examples for option in example.options]
    return Linear([-generator.random(n) for n in lengths], [generator.standard_normal((n, q)) for n in lengths])


def step(
    objective: Choice | Completion, examples: Sequence[Example], model: Linear, damping: float
) -> NDArray[np.float64]:
    """The step along the probes that the estimator makes, of which each probe moves one of the q numbers."""
    q = model.slopes[0].shape[1]
    estimator = GaussNewton(probes=q, damping=damping)
    probes = [Probe(k) for k in range(q)]
    scores = [model.at(sign * EPS * np.eye(q)[k]) for k in range(q) for sign in (1, -1)]
    losses = [objective.loss(examples, own) for own in scores]
    found = estimator.refine(estimator.estimate(probes, EPS, losses), objective, examples, scores)
    return np.array([-step / q for step in found.preconditioned])


def derivatives(
    objective: Choice | Completion, examples: Sequence[Example], model: Linear
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gradient and Hessian of the loss by the q numbers, by differences."""
    q, h = model.slopes[0].shape[1], 1e-4
    unit = np.eye(q) * h

    def loss(c: NDArray[np.float64]) -> float:
        return objective.loss(examples, model.at(c))

    gradient = np.array([(loss(u) - loss(-u)) / (2 * h) for u in unit])
    hessian = np.array(
        [[(loss(u + v) - loss(u - v) - loss(v - u) + loss(-u - v)) / (4 * h * h) for v in unit] for u in unit]
    )
    return gradient, hessian


@pytest.mark.parametrize("q", [1, 3, 5])
def test_a_choice_takes_newtons_step(q: int) -> None:
    """Where scores are linear, Gauss-Newton is Newton."""
    model = linear(EXAMPLES, q)
    gradient, hessian = derivatives(Choice(), EXAMPLES, model)
    damping = 0.5
    expected = -np.linalg.solve(hessian + damping * np.trace(hessian) / q * np.eye(q), gradient)
    assert step(Choice(), EXAMPLES, model, damping) == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_a_text_takes_fishers_step() -> None:
    model = linear(TEXTS, 3)
    weight = np.concatenate([np.full(len(t.options[0]), 1 / (len(TEXTS) * len(t.options[0]))) for t in TEXTS])
    slopes = np.concatenate(model.slopes)
    gradient, fisher = -weight @ slopes, (slopes.T * weight) @ slopes
    expected = -np.linalg.solve(fisher + np.trace(fisher) / 3 * np.eye(3), gradient)
    assert step(Completion(), TEXTS, model, 1.0) == pytest.approx(expected, rel=1e-6)


def test_where_the_model_is_sure_of_what_is_wrong_a_step_ends() -> None:
    """Its curvature is next to nothing there; the direction of the step stays."""
    sure = Linear([np.array([0.0 if k % 3 == 1 else -40.0]) for k in range(12)], linear(EXAMPLES, 2).slopes)
    wrong = [Example(one.prompt, one.options, 0, 1) for one in EXAMPLES]
    cut = step(Choice(), wrong, sure, 1.0)
    moved = np.concatenate([slopes @ cut for slopes in sure.slopes])
    assert np.sqrt(np.mean(moved**2)) == pytest.approx(FURTHEST)
    assert Choice().loss(wrong, sure.at(cut)) < Choice().loss(wrong, sure.at(np.zeros(2)))


def test_steps_lower_the_loss_without_a_learning_rate() -> None:
    """The same whatever the scale of the directions."""
    model = linear(EXAMPLES, 4)
    before = Choice().loss(EXAMPLES, model.at(np.zeros(4)))
    moved = step(Choice(), EXAMPLES, model, 1.0)
    assert Choice().loss(EXAMPLES, model.at(moved)) < before
    scaled = Linear(model.base, [100 * s for s in model.slopes])
    assert step(Choice(), EXAMPLES, scaled, 1.0) * 100 == pytest.approx(moved, rel=1e-3)


def test_directions_that_change_nothing_are_not_taken() -> None:
    model = Linear(linear(EXAMPLES, 2).base, [np.zeros((1, 2))] * 12)
    assert step(Choice(), EXAMPLES, model, 1.0).tolist() == [0.0, 0.0]


def test_scores_that_are_no_numbers_are_passed_on() -> None:
    model = linear(EXAMPLES, 2)
    model.base[0][0] = np.nan
    assert np.isnan(step(Choice(), EXAMPLES, model, 1.0)).all()
