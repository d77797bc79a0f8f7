"""Sampled texts become more likely the better they were, and what was written once is not written again."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from architectures import build
from quotients import slopes_of

from twinpass.core import BASE, Request, Sampling
from twinpass.engine.base import AdamStep
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.model.trainable import Activated, Lora
from twinpass.objective.goal import At
from twinpass.objective.policy_gradient import PolicyGradient
from twinpass.objective.population import Population
from twinpass.objective.reward_functions import RewardFunction
from twinpass.objective.rewards import Rewards, advantages_of
from twinpass.task.example import Asked, Example

ASKED = [Asked((5, 6, 7), shown="five"), Asked((9, 8), shown="nine")]


def low(completions: list[str], completion_ids: list[list[int]]) -> list[float]:
    return [float(np.mean([token < 48 for token in ids])) for ids in completion_ids]


def population(samples: int) -> Population:
    return Population(Rewards([RewardFunction.of(low)]), Sampling(6, temperature=1.0), str, samples)


def test_advantages() -> None:
    found = advantages_of(np.array([[1.0, 3.0, np.nan], [2.0, 2.0, 2.0]]))
    assert found.tolist() == [[-1, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("samples", range(2, 17))
def test_equal_rewards_have_no_advantage_however_their_mean_is_rounded(samples: int) -> None:
    for reward in (0.1, 0.7, -1 / 3, 1e6 / 7, 1e-9):
        row = np.array([reward] * samples + [np.nan])
        assert advantages_of(row[None]).tolist() == [[0.0] * (samples + 1)]
    apart = advantages_of(np.array([[0.1] * samples + [0.1 + 1e-6]]))
    assert apart[0, -1] == pytest.approx(samples**0.5, rel=1e-6)


def test_the_loss_and_its_derivative() -> None:
    objective, scores = PolicyGradient((2.0, -1.0)), [np.array([-1.0, -3.0]), np.array([-2.0])]
    examples = [Example((1,), ((2, 3),), 0, 0), Example((1,), ((4,),), 0, 0)]
    assert objective.loss(examples, scores) == pytest.approx((2 * 4 - 2) / 3)
    assert [slope.tolist() for slope in objective.gradient(examples, scores)] == [
        pytest.approx([-2 / 3, -2 / 3]),
        pytest.approx([1 / 3]),
    ]
    assert [request.completion for request in objective.requests(examples)] == [(2, 3), (4,)]


def test_the_divergence_from_what_the_model_was_and_its_derivative() -> None:
    """The estimate is never below 0, 0 where nothing moved, and its slope is that of a difference quotient."""
    before, scores = ((-1.0, -3.0), (-2.0,)), [np.array([-1.5, -2.0]), np.array([-2.0])]
    objective = PolicyGradient((0.0, 0.0), before, beta=0.3)
    examples = [Example((1,), ((2, 3),), 0, 0), Example((1,), ((4,),), 0, 0)]
    ratios = [0.5, -1.0, 0.0]
    assert objective.loss(examples, scores) == pytest.approx(0.3 * sum(np.exp(r) - r - 1 for r in ratios) / 3)
    assert objective.divergence([np.array(own) for own in before]) == 0
    slopes_of(objective, examples, scores)


ADAPTERS = (Lora(4, 8.0), Activated(4, 8.0), Lora(4, 8.0, first=1), Activated(4, 8.0, first=1))
"""One that acts everywhere, one that acts on the text alone, and both in upper layers only."""


@pytest.mark.parametrize("rows", [2, 64])
@pytest.mark.parametrize("trainable", ADAPTERS, ids=str)
def test_what_the_model_was_is_known_whatever_has_been_trained(trainable: Lora, rows: int) -> None:
    """And in how many runs, and what is kept of prompts meanwhile stays."""
    engine = TorchEngine(build("llama"), trainable, invocation=(7,), chunk_rows=rows)
    goal = replace(population(4), beta=0.1)
    requests = [Request((5, 6, 7), (8, 9, 3), 2), Request((5, 6, 7), (1, 2), 2), Request((9, 7), (4,), 1)]
    before = engine.score(requests, [BASE]).values[0]
    engine.descend(engine.gradient(requests, lambda scores: [np.ones(len(own)) for own in scores]), AdamStep(1, 1e-1))
    after = engine.score(requests, [BASE])
    warm, known = engine.score(requests, [BASE]).work, engine.reference(requests)
    for own, then, now in zip(known.values[0], before, after.values[0], strict=True):
        np.testing.assert_allclose(own, then, atol=1e-5)
        assert np.abs(now - then).max() > 1e-2
    again = engine.reference(requests)
    for own, then in zip(again.values[0], known.values[0], strict=True):
        np.testing.assert_allclose(own, then, atol=1e-5)
    assert again.work.computed <= known.work.computed
    assert engine.score(requests, [BASE]).work == warm
    lesson = goal.teach(engine, [Asked((5, 6, 7), suffix_start=2, shown="five")], At(3)).lesson
    assert [len(own) for own in lesson.reference] == [len(own) for own in lesson.texts]


def test_a_step_along_it_makes_better_texts_likelier() -> None:
    engine, goal = TorchEngine(build("llama"), Lora(4, 8.0)), population(16)
    taught = goal.teach(engine, ASKED, At(3))
    assert goal.teach(engine, ASKED, At(3)).lesson == taught.lesson
    assert goal.teach(engine, ASKED, At(4)).lesson != taught.lesson
    objective, examples = goal.learn(ASKED, taught.lesson)
    assert [example.options[0] for example in examples] == list(taught.lesson.texts)
    requests = objective.requests(examples)
    before = objective.loss(examples, engine.score(requests, [BASE]).values[0])
    engine.descend(engine.gradient(requests, partial(objective.gradient, examples)), AdamStep(1, 1e-2))
    assert objective.loss(examples, engine.score(requests, [BASE]).values[0]) < before - 1e-4
