"""The choice objective against the definition, written out by hand."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quotients import slopes_of

from twinpass.core import Request, Score
from twinpass.errors import ModelError
from twinpass.objective.accuracy import Accuracy
from twinpass.objective.choice import Choice
from twinpass.objective.expected_accuracy import ExpectedAccuracy
from twinpass.task.example import Example

Logs = list[list[list[float]]]
"""Log-probabilities by example, option and token."""


def examples_of(logs: Logs, labels: Sequence[int]) -> list[Example]:
    return [
        Example((1, 2), tuple(tuple(range(len(tokens))) for tokens in options), label, 2)
        for options, label in zip(logs, labels, strict=True)
    ]


def scores_of(logs: Logs) -> list[Score]:
    return [np.array(tokens, dtype=np.float64) for options in logs for tokens in options]


def cross_entropy(options: list[list[float]], label: int) -> float:
    logits = [math.fsum(tokens) for tokens in options]
    top = max(logits)
    return top + math.log(math.fsum(math.exp(logit - top) for logit in logits)) - logits[label]


def test_requests_are_every_option_of_every_example_in_order() -> None:
    examples = [Example((1, 2), ((3,), (4, 5)), 0, 2), Example((6,), ((7,), (8,), (9, 9)), 2, 1)]
    assert Choice().requests(examples) == [
        Request((1, 2), (3,), active_from=2),
        Request((1, 2), (4, 5), active_from=2),
        Request((6,), (7,), active_from=1),
        Request((6,), (8,), active_from=1),
        Request((6,), (9, 9), active_from=1),
    ]


def test_loss_of_probabilities_that_sum_to_one_is_minus_the_log_of_the_right_one() -> None:
    logs = [[[math.log(0.2)], [math.log(0.5), math.log(0.5), math.log(0.5)], [math.log(0.675)]]]
    for label, probability in enumerate((0.2, 0.125, 0.675)):
        loss = Choice().loss(examples_of(logs, [label]), scores_of(logs))
        assert loss == pytest.approx(-math.log(probability), rel=1e-14)


def test_loss_normalises_over_the_options_only() -> None:
    logs = [[[-10.0, -1.0], [-11.0]], [[-3.0], [-3.0], [-1.0, -2.0]]]
    loss = Choice().loss(examples_of(logs, [0, 1]), scores_of(logs))
    assert loss == pytest.approx((math.log(2) + math.log(3)) / 2, rel=1e-14)


batches = st.lists(
    st.lists(st.lists(st.floats(-1e3, 0.0), min_size=1, max_size=4), min_size=2, max_size=5), min_size=1, max_size=5
)


@settings(deadline=None, max_examples=100)
@given(batches, st.data())
def test_loss_and_accuracy_are_those_computed_by_hand(logs: Logs, data: st.DataObject) -> None:
    labels = [data.draw(st.integers(0, len(options) - 1)) for options in logs]
    examples, scores = examples_of(logs, labels), scores_of(logs)
    losses = [cross_entropy(options, label) for options, label in zip(logs, labels, strict=True)]
    assert Choice().loss(examples, scores) == pytest.approx(math.fsum(losses) / len(losses), rel=1e-9, abs=1e-9)

    right = [
        int(np.argmax([np.sum(tokens) for tokens in options])) == label
        for options, label in zip(logs, labels, strict=True)
    ]
    assert Choice().metric(examples, scores) == pytest.approx(sum(right) / len(right))


def test_very_unlikely_options_stay_finite() -> None:
    logs = [[[-2e4], [-1e4]]]
    assert Choice().loss(examples_of(logs, [0]), scores_of(logs)) == pytest.approx(1e4)
    assert Choice().loss(examples_of(logs, [1]), scores_of(logs)) == 0.0


def test_a_score_that_is_not_a_number_shows_in_the_loss() -> None:
    logs = [[[math.nan], [-1.0]]]
    with np.errstate(invalid="ignore"):
        assert math.isnan(Choice().loss(examples_of(logs, [1]), scores_of(logs)))


@pytest.mark.parametrize(("labels", "accuracy"), [((0, 2), 1.0), ((0, 1), 0.5), ((1, 0), 0.0)])
def test_accuracy_counts_the_likeliest_option(labels: tuple[int, int], accuracy: float) -> None:
    logs = [[[-0.1, -0.1], [-0.3]], [[-5.0], [-4.0], [-1.0, -1.0]]]
    choice = Choice()
    assert choice.metric_name == "accuracy"
    assert choice.metric(examples_of(logs, labels), scores_of(logs)) == accuracy


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_the_gradient_is_the_derivative_of_the_loss(seed: int) -> None:
    """Central differences of every score, of options of one token and of several."""
    rng = np.random.default_rng(seed)
    logs = [[list(-rng.exponential(2.0, rng.integers(1, 4))) for _ in range(rng.integers(2, 5))] for _ in range(3)]
    examples, scores = examples_of(logs, [0, 1, 1]), scores_of(logs)
    slopes = Choice().gradient(examples, scores)
    for score, slope in zip(scores, slopes, strict=True):
        for i in range(len(score)):
            kept, losses = score[i], []
            for shift in (1e-6, -1e-6):
                score[i] = kept + shift
                losses.append(Choice().loss(examples, scores))
            score[i] = kept
            assert slope[i] == pytest.approx((losses[0] - losses[1]) / 2e-6, abs=1e-8)


def test_options_may_be_scored_by_the_mean_of_their_tokens() -> None:
    """MeZO's rule: a long option is not the less likely for its length, and every token of it has its share of the slope."""
    logs: Logs = [[[-3.0], [-2.0, -2.0]]]
    examples, scores = examples_of(logs, [1]), scores_of(logs)
    assert (Choice().metric(examples, scores), Choice(score="mean").metric(examples, scores)) == (0.0, 1.0)
    assert Choice(score="mean").loss(examples, scores) == pytest.approx(math.log(1 + math.exp(-1)))
    first, second = Choice(score="mean").gradient(examples, scores)
    share = 1 / (1 + math.e)
    assert first == pytest.approx([share])
    assert second == pytest.approx([-share / 2, -share / 2])


def test_over_the_vocabulary_the_loss_is_the_right_options_own() -> None:
    logs = [[[-10.0, -1.0], [-11.0]], [[-3.0], [-3.0], [-1.0, -2.0]]]
    examples, scores = examples_of(logs, [0, 2]), scores_of(logs)
    assert Choice(over="vocabulary").loss(examples, scores) == pytest.approx((11.0 + 3.0) / 2)
    assert Choice(over="vocabulary", score="mean").loss(examples, scores) == pytest.approx((5.5 + 1.5) / 2)
    assert Choice(over="vocabulary").metric(examples, scores) == Choice().metric(examples, scores)


def test_over_the_vocabulary_log_probabilities_are_whole_ones() -> None:
    """Options of one token each may be scored relative to each other otherwise, which would leave out what is not an option."""
    examples = [Example((1, 2), ((3,), (4,)), 0, 2)]
    assert all(request.relative for request in Choice().requests(examples))
    assert not any(request.relative for request in Choice(over="vocabulary").requests(examples))


@pytest.mark.parametrize("score", ["sum", "mean"])
def test_over_the_vocabulary_slopes_and_curvature_are_those_of_the_loss(score: Literal["sum", "mean"]) -> None:
    logs = [[[-10.0, -1.0], [-11.0]], [[-3.0], [-3.0], [-1.0, -2.0]]]
    choice, examples, scores = Choice(over="vocabulary", score=score), examples_of(logs, [0, 2]), scores_of(logs)
    generator = np.random.default_rng(3)
    tangents = [[generator.normal(size=own.shape) for own in scores] for _ in range(2)]
    slopes = choice.gradient(examples, scores)
    for tangent in tangents:
        moved = [choice.loss(examples, [s + eps * t for s, t in zip(scores, tangent, strict=True)]) for eps in (1, -1)]
        given = sum(float(s @ t) for s, t in zip(slopes, tangent, strict=True))
        assert given == pytest.approx((moved[0] - moved[1]) / 2)
    found = choice.curvature(examples, scores, tangents)
    length = 1 if score == "sum" else 2
    right = np.array([[t[0].sum() / length, t[4].sum() / length] for t in tangents])
    np.testing.assert_allclose(found, right @ right.T / 2)


def test_accuracy_tells_right_from_wrong_alone() -> None:
    examples = [Example((5, 6), ((1,), (2, 3)), label, 1) for label in (0, 1, 1)]
    scores = [np.array(each) for each in ([-1.0], [-0.4, -0.5], [-3.0], [-1.0, -1.0], [-1.0], [-0.6, -0.6])]
    assert Accuracy().loss(examples, scores) == pytest.approx(2 / 3)
    assert Accuracy().metric(examples, scores) == pytest.approx(1 / 3)
    with pytest.raises(ModelError, match=r"Accuracy has no derivative; use estimator\.kind = 'spsa'"):
        Accuracy().gradient(examples, scores)


def test_expected_accuracy_is_that_of_an_option_that_is_drawn() -> None:
    """Its derivative is that of the policy gradient, reward times grad log p, in the mean over options."""
    objective = ExpectedAccuracy()
    examples = [Example((5, 6), ((1,), (2, 3)), label, 1) for label in (0, 1)]
    scores = [np.array(each) for each in ([-1.0], [-0.4, -0.5], [-3.0], [-1.0, -1.0])]
    p = [1 / (1 + math.exp(0.1)), 1 / (1 + math.exp(-1.0))]
    assert objective.loss(examples, scores) == pytest.approx(1 - sum(p) / 2)
    assert objective.metric(examples, scores) == 0.5
    slopes = slopes_of(objective, examples, scores)
    assert slopes[0].tolist() == pytest.approx([-p[0] * (1 - p[0]) / 2])
