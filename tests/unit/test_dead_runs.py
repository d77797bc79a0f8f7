"""Runs that go on and learn nothing, as all their gradients are exactly 0."""

from dataclasses import replace

import pytest
from stepping import history_of

from twinpass.core import Observation
from twinpass.steps import Steps
from twinpass.train.history import History
from twinpass.train.safeguards import dead


@pytest.mark.parametrize(
    ("gradients", "losses", "is_dead"),
    [
        ([(0.0, 0.0)] * 10, [1.0] * 10, True),
        ([(0.0, -0.0)] * 9, [1.0] * 9, False),
        ([(1.0, 2.0), *[(0.0, 0.0)] * 9], [1.0] * 10, True),
        ([(1.0, 2.0), (0.0, 3.0), *[(0.0, 0.0)] * 8], [1.0] * 10, False),
        ([(0.0, 0.0)] * 10, [0.0] * 10, False),
        ([*[(0.0, 0.0)] * 10, *[(1.0, 1.0)] * 3], [1.0] * 13, False),
        ([*[(0.0, 0.0)] * 9, (1.0, 2.0)], [*[0.0] * 9, 1.0], False),
        ([(0.0, 0.0)] * 10, [*[0.0] * 9, 1.0], False),
        ([(0.0, 0.0)] * 10, [*[1.0] * 9, 0.0], True),
    ],
)
def test_a_run_is_dead_once_nearly_all_gradients_are_zero(
    gradients: list[tuple[float, float]], losses: list[float], is_dead: bool
) -> None:
    history = history_of(gradients, losses)
    why = dead(history)
    assert (why is not None) == is_dead
    assert why is None or "are exactly 0" in why


def test_why_a_run_is_dead_is_said_with_its_last_step() -> None:
    why = dead(history_of([(0.0, 0.0)] * 10, [1.0, 2.0, *[3.0] * 7, 4.25]))
    assert why is not None
    assert why.startswith("20 of the last 20 projected gradients are exactly 0")
    assert "(4.25 in the last step)" in why


def test_a_run_that_still_looks_for_its_eps_is_not_dead() -> None:
    steps = list(history_of([(0.0,)] * 10).steps)
    steps[3] = replace(steps[3], estimate=replace(steps[3].estimate, eps=1e-1))
    history = History(Steps(steps))
    assert dead(history) is None


@pytest.mark.parametrize(
    ("norms", "losses", "is_dead"),
    [
        ([0.0] * 10, [0.5] * 10, True),
        ([3.0, *[0.0] * 9], [0.5] * 10, True),
        ([3.0, 1e-30, *[0.0] * 8], [0.5] * 10, False),
        ([0.0] * 9, [0.5] * 9, False),
        ([0.0] * 10, [0.0] * 10, False),
        ([None] * 10, [0.5] * 10, False),
        ([*[0.0] * 9, 3.0], [*[0.0] * 9, 0.5], False),
        ([*[0.0] * 9, 0.0], [*[0.0] * 9, 0.5], False),
        ([3.0, *[0.0] * 9], [0.0, *[0.5] * 9], True),
    ],
)
def test_a_run_along_whole_gradients_is_dead_once_nearly_all_are_zero_at_a_loss(
    norms: list[float | None], losses: list[float], is_dead: bool
) -> None:
    """Steps whose own loss is 0 had nothing to learn from: by sparse rewards, texts of most prompts score alike."""
    steps = history_of([()] * len(norms), losses).steps
    seen = [
        replace(
            step,
            observed=Observation(norm=norm),
            estimate=replace(step.estimate, losses=((loss, loss),)),
        )
        for step, norm, loss in zip(steps, norms, losses, strict=True)
    ]
    why = dead(History(Steps(seen)))
    assert (why is not None) == is_dead
    assert why is None or f"of the last 10 gradients are exactly 0, at a loss of {losses[-1]}" in why
