"""Measures against scikit-learn's and SciPy's definitions, worked out by hand."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from twinpass.report.measures import RESAMPLES, Choices, ScoredTexts, calibration_error, macro_f1, mcnemar
from twinpass.report.shown import figure
from twinpass.report.written import WrittenTexts


def choices(chosen: list[int], right: list[int], sure: float = 0.9) -> Choices:
    rest = (1 - sure) / 2
    shares = [np.array([sure if i == option else rest for i in range(3)]) for option in chosen]
    return Choices(shares, np.array(right))


def test_accuracy_f1_confusion_and_loss() -> None:
    found = choices([0, 0, 1, 2, 2, 2], [0, 1, 1, 2, 2, 0]).measures()
    assert found["accuracy"]["value"] == pytest.approx(4 / 6)
    assert found["confusion"] == [[1, 0, 1], [1, 1, 0], [0, 0, 2]]
    assert found["macro_f1"]["value"] == pytest.approx((2 / 4 + 2 / 3 + 4 / 5) / 3)
    assert found["cross_entropy"]["value"] == pytest.approx(-(4 * math.log(0.9) + 2 * math.log(0.05)) / 6)
    assert found["calibration_error"]["value"] == pytest.approx(0.9 - 4 / 6)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.123"), (-2.0, "-2.000"), (999_999.0, "999999.000"), (3938501570812508.0, "3.94e+15")],
)
def test_figures_stay_in_their_column(value: float, text: str) -> None:
    assert figure(value) == text


def test_kinds_that_never_occur_do_not_count() -> None:
    assert macro_f1(np.array([0, 0, 2]), np.array([0, 0, 2])) == 1.0
    assert macro_f1(np.array([0, 0]), np.array([1, 1])) == 0.0


def test_calibration_is_by_bins() -> None:
    sure, each = np.array([0.95, 0.95, 0.55, 0.55]), np.array([1.0, 1.0, 1.0, 0.0])
    assert calibration_error(sure, each) == pytest.approx((2 * 0.05 + 2 * 0.05) / 4)
    assert calibration_error(np.array([1.0]), np.array([1.0])) == 0.0


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (3, 4), (20, 8), (1, 1)])
def test_mcnemar_is_the_binomial_test(gained: int, lost: int) -> None:
    expected = binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected)


def test_an_interval_covers_what_it_says() -> None:
    generator = np.random.default_rng(1)
    right = (generator.random(400) < 0.7).astype(int)
    found = choices([0] * 400, list(1 - right)).measures()["accuracy"]
    spread = 1.96 * math.sqrt(found["value"] * (1 - found["value"]) / 400)
    assert found["low"] == pytest.approx(found["value"] - spread, abs=0.01)
    assert found["high"] == pytest.approx(found["value"] + spread, abs=0.01)


@pytest.mark.parametrize(("right", "low", "high"), [(1, 0.806, 1.0), (0, 0.0, 0.194)])
def test_rows_that_are_all_alike_leave_doubt(right: int, low: float, high: float) -> None:
    chosen = choices([0] * 16, [1 - right] * 16).measures()
    texts = WrittenTexts(
        ["fine film"] * 16, ["fine film" if right else "dull story"] * 16, {"f": np.full(16, right - 0.5)}
    ).measures()
    mean = texts.pop("rewards/f/mean")
    assert (mean["low"], mean["high"]) == (right - 0.5, right - 0.5), "a reward has no bounds"
    for found in (chosen["accuracy"], chosen["macro_f1"], *texts.values()):
        assert found["value"] == right
        assert (found["low"], found["high"]) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))


def test_two_choosers_on_the_same_rows() -> None:
    first, second = choices([0] * 10, [0] * 9 + [1]), choices([1] * 6 + [0] * 4, [0] * 9 + [1])
    found = first.against(second)
    assert found["difference"]["value"] == pytest.approx(0.6)
    assert (found["only_first_right"], found["only_second_right"]) == (6, 0)
    assert found["p_value"] == pytest.approx(2 / 2**6)


def test_perplexity_counts_tokens_and_loss_counts_rows() -> None:
    scores = [np.log(np.array([0.5, 0.5, 0.5, 0.5])), np.log(np.array([0.125]))]
    found = ScoredTexts(scores).measures()
    assert found["loss"]["value"] == pytest.approx((math.log(2) + math.log(8)) / 2)
    assert found["token_probability"]["value"] == pytest.approx((0.5 + 0.125) / 2)
    assert found["perplexity"]["value"] == pytest.approx(math.exp((4 * math.log(2) + math.log(8)) / 5))


def test_two_writers_on_the_same_rows() -> None:
    generator = np.random.default_rng(2)
    scores = [-generator.random(5) for _ in range(30)]
    better = ScoredTexts([score + 0.1 for score in scores])
    found = better.against(ScoredTexts(scores))
    assert found["difference"]["value"] == pytest.approx(0.1)
    assert found["p_value"] == 2 / RESAMPLES
    same = ScoredTexts(scores).against(ScoredTexts(scores))
    assert (same["difference"]["value"], same["p_value"]) == (0.0, 1.0)
