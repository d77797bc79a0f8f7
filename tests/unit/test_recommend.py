"""Advice from a sweep's rows."""

from typing import Any

import pytest

from twinpass.analysis.limits import curvature, loss_noise, steadiest
from twinpass.analysis.recommend import recommend
from twinpass.analysis.sweep import Course


def row(policy: str, eps: float, error: float, saved: float, **more: Any) -> dict[str, Any]:
    plain = {
        "dtype": "float32",
        "accepted_hit_rate": None,
        "reference_error": 0.0,
        "probes": 32,
        "seconds_per_probe": 1.0,
    }
    return {**plain, "policy": policy, "eps": eps, "relative_error": error, "compute_saved": saved, **more}


EXACT = [row("exact", 1e-4, 0.0, 0.0, reference_error=0.01), row("exact", 1e-3, 0.0, 0.0, reference_error=0.002)]


@pytest.mark.parametrize(
    ("rows", "policy", "eps"),
    [
        ([], "exact", 1e-3),  # the eps at which exact is nearest the reference
        ([row("reflected", 1e-4, 0.02, 0.3), row("reflected", 1e-5, 0.04, 0.3)], "reflected", 1e-4),
        ([row("reflected", 1e-4, 0.02, 0.3), row("one_sided", 1e-5, 0.05, 0.4)], "one_sided", 1e-5),
        ([row("frozen", 1e-4, 0.7, 0.8)], "exact", 1e-3),  # too far off
        ([row("reflected", 1e-4, 0.02, 0.3, reference_error=0.3)], "exact", 1e-3),  # eps itself is too far off
        ([row("reflected", 1e-4, 0.02, 0.3, accepted_hit_rate=0.5)], "exact", 1e-3),  # too few accepted
        ([row("reflected", 1e-4, 0.02, 0.3, accepted_hit_rate=0.9)], "reflected", 1e-4),
        ([row("reflected", 1e-4, 0.02, -0.1)], "exact", 1e-3),  # it costs more
    ],
)
def test_the_most_saved_within_the_error(rows: list[dict[str, Any]], policy: str, eps: float) -> None:
    advice = recommend([*EXACT, *rows])
    assert (advice["policy"], advice["eps"], advice["dtype"]) == (policy, eps, "float32")


def test_the_faster_dtype_if_it_is_near_enough() -> None:
    fast = row("exact", 1e-2, 0.0, 0.0, dtype="bfloat16", reference_error=0.09, seconds_per_probe=0.3)
    assert recommend([*EXACT, fast])["dtype"] == "bfloat16"
    assert recommend([*EXACT, {**fast, "reference_error": 0.2}])["dtype"] == "float32"


def test_nothing_usable_says_so() -> None:
    advice = recommend([row("exact", 1e-1, 0.0, 0.0, reference_error=0.9), row("frozen", 1e-3, 0.7, 0.8)])
    assert advice["policy"] == "frozen"
    assert "nothing measured here has an error of g within 0.1" in advice["reason"]


def test_the_steadiest_eps() -> None:
    """Gradients that rounding shakes below, and truncation bends above."""
    gradients = {1e-6: [1.4, 0.5], 1e-5: [1.02, 1.01], 1e-4: [1.0, 1.0], 1e-3: [1.0, 1.01], 1e-2: [1.5, 1.4]}
    courses = [Course(eps, values) for eps, values in gradients.items()]
    assert steadiest(courses).eps == 1e-4
    assert steadiest(courses[:2]) is courses[0]


def test_noise_and_curvature() -> None:
    """A loss with noise of 1e-7: g at eps 1e-5 is off by 1e-7 / (sqrt(2) 1e-5)."""
    off = 1e-7 / (2**0.5 * 1e-5)
    assert loss_noise([Course(1e-3, [9.0]), Course(1e-5, [1.0 + off, 2.0 - off])], [1.0, 2.0]) == pytest.approx(1e-7)
    assert curvature({1e-2: [3e-4, -3e-4]}) == [{"eps": 1e-2, "rms": pytest.approx(3.0)}]
