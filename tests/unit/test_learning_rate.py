"""The learning rate's factor: warmup, and its shapes at their edges; rates that move next to nothing."""

import math
from pathlib import Path
from typing import Any

import pytest
from configurations import minimal, problems_of
from hypothesis import given, settings
from hypothesis import strategies as st

import twinpass
from twinpass.config.load import parse
from twinpass.schedule.learning_rate import ScheduleName, factor
from twinpass.train.optimizer import Sgd

SCHEDULES: tuple[ScheduleName, ...] = ("constant", "linear", "cosine", "plateau")
property_test = settings(deadline=None, max_examples=60)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_factor_starts_at_one_without_warmup(schedule: ScheduleName) -> None:
    assert factor(schedule, 0, 10, 0) == 1.0


@pytest.mark.parametrize(("schedule", "end"), [("constant", 1.0), ("linear", 0.0), ("cosine", 0.0)])
@pytest.mark.parametrize("warmup", [0, 4])
def test_factor_ends_one_past_the_last_step(schedule: ScheduleName, end: float, warmup: int) -> None:
    assert factor(schedule, 10, 10, warmup) == pytest.approx(end, abs=1e-15)
    assert factor(schedule, 9, 10, warmup) > 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_rises_to_one_and_then_the_schedule_begins(schedule: ScheduleName) -> None:
    assert [factor(schedule, step, 10, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_shapes_have_their_known_midpoints() -> None:
    assert [factor("linear", step, 10, 2) for step in (4, 6, 8)] == [0.75, 0.5, 0.25]
    assert factor("cosine", 6, 10, 2) == pytest.approx(0.5)
    assert factor("cosine", 4, 10, 2) == pytest.approx(0.5 + math.sqrt(0.125))
    assert {factor("constant", step, 10, 0) for step in range(10)} == {1.0}


@property_test
@given(st.sampled_from(SCHEDULES), st.integers(1, 60), st.integers(0, 80))
def test_factors_stay_in_range_and_never_rise_after_warmup(schedule: ScheduleName, steps: int, warmup: int) -> None:
    factors = [factor(schedule, step, steps, warmup) for step in range(steps)]
    assert all(0 < value <= 1 for value in factors)
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)


def test_lr_is_scaled_by_the_factor() -> None:
    sgd = Sgd(lr=0.5, steps=10, warmup=2)
    assert [sgd.lr_at(step) for step in (0, 1, 2, 6)] == [0.25, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("said", [{"lr": 3e-5}, {"lr": 3e-5, "steps": 300}, {"lr": 1e-7, "steps": 90_000}])
def test_a_share_by_which_weights_hardly_move_is_refused(said: dict[str, Any]) -> None:
    """Rates for random directions are as small, and there they learn."""
    values = minimal(optimizer={"lr": None, "steps": None, **said})
    (problem,) = problems_of(values)
    assert problem.startswith("[optimizer] lr: it is the share of its own norm that a weight is moved by, and ")
    assert "leave it out, or set about 2e-3 (for random directions" in problem
    begun = parse(values, "it.toml", Path("/nowhere"), begun=True).optimizer
    assert begun.lr == said["lr"], "a run that began with it goes on"
    assert isinstance(parse({**values, "estimator": {"kind": "spsa"}}, "it.toml", Path("/nowhere")).optimizer, Sgd)


@pytest.mark.parametrize(("lr", "steps"), [(1e-4, 1), (2e-3, 1), (3e-5, 400), (2e-2, 40)])
def test_what_may_learn_is_not_refused(lr: float, steps: int) -> None:
    found = parse(minimal(optimizer={"lr": lr, "steps": steps}), "it.toml", Path("/nowhere")).optimizer
    assert isinstance(found, twinpass.Relative)
    assert (found.lr, found.steps) == (lr, steps)
