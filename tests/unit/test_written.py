"""What written texts are worth beside the right ones."""

import math

import numpy as np
import pytest

from twinpass.report.written import WrittenTexts, normalised, passed, token_f1


@pytest.mark.parametrize(
    ("text", "right", "exact", "f1"),
    [
        ("The Eiffel Tower!", "eiffel tower", True, 1.0),
        ("in the tower", "tower", False, 2 / 3),
        ("a cat", "dog", False, 0.0),
        ("the", "a", True, 1.0),
        ("cat", "", False, 0.0),
        ("no no yes", "no yes yes", False, 2 / 3),
    ],
)
def test_squads_measures(text: str, right: str, exact: bool, f1: float) -> None:
    assert (normalised(text) == normalised(right)) is exact
    assert token_f1(text, right) == pytest.approx(f1)


def test_a_text_passes_above_0_and_those_without_a_reward_do_not_count() -> None:
    rewards = np.array([0.0, 1.0, -2.0, math.nan, 0.5])
    np.testing.assert_array_equal(passed(rewards), [0.0, 1.0, 0.0, math.nan, 1.0])
    found = WrittenTexts(["x"] * 5, ["x"] * 5, {"r": rewards}).measures()
    assert found["rewards/r/pass_rate"]["value"] == 0.5
    assert found["rewards/r/mean"]["value"] == pytest.approx(-0.125)
    assert found["exact_match"] == {"value": 1.0, "low": pytest.approx(0.566, abs=1e-3), "high": 1.0}


def test_rouge_is_the_packages() -> None:
    pytest.importorskip("rouge_score", reason="needs the package rouge-score")
    found = WrittenTexts(["the cats sat", "b"], ["the cat sat down", "b"]).each()
    np.testing.assert_allclose(found["rouge1"], [2 * 3 / 7, 1.0])
    np.testing.assert_allclose(found["rouge2"], [2 * 2 / 5, 0.0])
    np.testing.assert_allclose(found["rougeL"], [2 * 3 / 7, 1.0])
