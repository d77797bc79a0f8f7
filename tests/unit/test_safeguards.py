"""Clip and divergence guard: pure functions, checked at their edges."""

import copy
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepping import history_of

from twinpass.core import StepReport
from twinpass.steps import Rollback, Steps
from twinpass.train.history import History
from twinpass.train.safeguards import SETTLED, DivergenceGuard, MedianClip, dead
from twinpass.train.windows import Windows

property_test = settings(deadline=None, max_examples=60)


def work_of(call: Callable[[], object]) -> int:
    """How many lines of Python run."""
    count = 0

    def trace(frame: object, event: str, argument: object) -> Any:
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("every", [1, 3])
def test_what_a_check_takes_does_not_grow_with_the_run(every: int) -> None:
    """Evaluations included, which may come after every step."""
    history, guard, found = history_of(), DivergenceGuard(), dict[int, int]()
    template = history_of(losses=[1.0]).steps[0]
    for step in range(1, 1201):
        history.steps.append(replace(template, step=step - 1))
        record = {"kind": "evaluation", "step": step, "metric": (step * 7919 % 101) / 101, "loss": 1.0, "rows": 4}
        taken: list[Callable[[], object]] = [lambda: guard.check(history, likelihood=True), lambda: dead(history)]
        if not step % every:
            taken.insert(0, partial(history.fold, record))
        if step in (300, 1200):
            found[step] = sum(map(work_of, taken))
        else:
            for call in taken:
                call()
    assert 0 < found[1200] <= found[300] < 1200


# --- clip


@pytest.mark.parametrize("count", range(SETTLED))
def test_clip_waits_for_enough_gradients(count: int) -> None:
    history = history_of([(1.0,)] * count)
    assert MedianClip().limit(history) == math.inf
    assert MedianClip()((1e30, -1e30), history) == (1e30, -1e30)


def test_clip_brings_gradients_inside_the_limit_and_keeps_the_sign() -> None:
    history = history_of([(g,) for g in (1.0, -2.0, 3.0, -4.0, 100.0)])
    clip = MedianClip(factor=2.0)
    assert clip.limit(history) == 6.0
    assert clip((5.0, 7.0, -7.0, -6.0, 0.0), history) == (5.0, 6.0, -6.0, -6.0, 0.0)


def test_clip_off_lets_everything_through() -> None:
    assert MedianClip(factor=0.0)((1e30,), history_of([(1.0,)] * 50)) == (1e30,)


def test_clip_sees_the_last_window_of_probes_and_the_gradients_before_clipping() -> None:
    history = history_of([(1000.0,) * 3, (1000.0, 1.0, 2.0), (-3.0, -4.0, 5.0)])
    assert MedianClip(factor=1.0, window=5).limit(history) == 3.0
    assert MedianClip(factor=1.0, window=6).limit(history) == 3.5
    assert MedianClip(factor=1.0, window=100).limit(history) == 5.0


def test_the_shortest_window_clips() -> None:
    assert MedianClip(window=SETTLED).limit(history_of([(1.0,)] * 50)) == 4.0


@property_test
@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3), max_size=12), st.integers(SETTLED, 20))
def test_clip_limit_is_the_median_of_the_last_gradients(gradients: list[list[float]], window: int) -> None:
    flat = [abs(g) for row in gradients for g in row][-window:]
    expected = 4.0 * float(np.median(flat)) if len(flat) >= SETTLED else math.inf
    assert MedianClip(4.0, window).limit(history_of(gradients)) == expected


# --- divergence guard


@pytest.mark.parametrize("count", range(4))
def test_guard_waits_for_more_than_a_window(count: int) -> None:
    assert DivergenceGuard(window=3).check(history_of(losses=[10.0**step for step in range(count)])) is None


def test_guard_goes_back_to_the_end_of_the_best_window() -> None:
    losses = [1.0, 1.0, 0.5, 0.25, 0.5, 3.0]
    rollback = DivergenceGuard(window=2).check_losses(history_of(losses=losses))
    assert rollback == Rollback(4, "mean loss 1.75 of the last 2 steps is above 0.75")


@pytest.mark.parametrize(("last", "diverged"), [(1.0, False), (1.001, True)])
def test_guard_limit_is_relative_to_the_best_mean(last: float, diverged: bool) -> None:
    history = history_of(losses=[1.0, 0.5, last])
    assert (DivergenceGuard(window=1).check_losses(history) is not None) == diverged


@pytest.mark.parametrize(("last", "diverged"), [(0.26, False), (0.262, True)])
def test_guard_leaves_room_once_the_loss_is_near_zero(last: float, diverged: bool) -> None:
    history = history_of(losses=[1.0, 0.011, last])
    assert (DivergenceGuard(window=1).check_losses(history) is not None) == diverged


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({}, None),
        ({0: 0.5}, None),
        ({0: 0.5, 10: 0.9, 20: 0.76}, None),
        ({0: 0.5, 10: 0.9, 20: 0.74}, 10),
        ({0: 0.5, 10: 0.9, 20: 0.2, 30: 0.9}, None),
        ({20: 0.1, 0: 0.9, 10: 0.9}, 0),
    ],
)
def test_guard_goes_back_to_the_best_evaluation(metrics: dict[int, float], expected: int | None) -> None:
    history = history_of(losses=[1.0] * 30, metrics=metrics)
    for check in (DivergenceGuard().check_metric, DivergenceGuard().check):
        rollback = check(history)
        assert (None if rollback is None else rollback.to) == expected
        assert rollback is None or f"at step {expected}" in rollback.reason


def test_guard_is_switched_off_by_zero() -> None:
    history = history_of(losses=[1.0] * 3 + [1e9] * 3, metrics={0: 1.0, 6: 0.0})
    assert DivergenceGuard(window=2, loss=0.0, metric=0.0).check(history) is None
    assert DivergenceGuard(window=2, metric=0.0).check(history) is not None
    rollback = DivergenceGuard(window=2, loss=0.0).check(history)
    assert rollback is not None
    assert rollback.to == 0


@pytest.mark.parametrize(
    ("losses", "to"),
    [([], 0), ([1.0], 0), ([1.0, 2.0], 2), ([1.0, 2.0, 0.5, 0.25, 4.0], 4)],
)
def test_a_loss_that_is_not_finite_goes_back_to_the_best_window_or_the_start(losses: list[float], to: int) -> None:
    rollback = DivergenceGuard(window=2, loss=0.0).not_finite(history_of(losses=losses))
    assert rollback == Rollback(to, "a loss was not a finite number")


@property_test
@given(
    st.lists(st.floats(0.0, 50.0), max_size=30),
    st.dictionaries(st.integers(0, 30), st.floats(0.0, 1.0), max_size=5),
    st.integers(1, 6),
)
def test_guard_is_a_pure_function_and_is_content_after_its_rollback(
    losses: list[float], metrics: dict[int, float], window: int
) -> None:
    history = history_of(losses=losses, metrics={step: m for step, m in metrics.items() if step <= len(losses)})
    before, guard = copy.deepcopy(history), DivergenceGuard(window=window)
    for _ in range(2 + len(metrics)):
        rollback = guard.check(history)
        assert guard.check(history) == rollback
        assert history == before
        assert 0 <= guard.not_finite(history).to <= len(history.steps)
        if rollback is None:
            return
        last = max([len(history.steps), *history.evaluations])
        assert 0 <= rollback.to <= last
        history.fold({"kind": "rollback", "to": rollback.to, "lr_scale": 0.5, "discarded": 0})
        before = copy.deepcopy(history)
    raise AssertionError("the guard never came to rest")


def whole_means(losses: Sequence[float], window: int) -> list[float]:
    """All of them at once, as one convolution."""
    if len(losses) < window:
        return []
    return [float(m) for m in np.convolve(losses, np.ones(window) / window, mode="valid")]


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_means_kept_up_step_by_step_are_those_of_one_convolution_to_the_bit(data: st.DataObject) -> None:
    """Through rollbacks, too, and with the decisions that follow."""
    window = data.draw(st.sampled_from([1, 2, 3, 7, 11, 12, 16, 20, 33, 64]))
    chance = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    history, guard = history_of(), DivergenceGuard(window=window)
    losses: list[float] = []
    for _ in range(data.draw(st.integers(1, 4))):
        for loss in chance.exponential(2.0, data.draw(st.integers(1, 90))).tolist():
            history.steps.append(history_of(losses=[loss]).steps[0])
            losses.append(history.steps[-1].estimate.loss)
            means = whole_means(losses, window)
            kept = history.windows(window)
            assert list(kept.means) == means
            assert list(kept.best) == [int(np.argmin(means[: i + 1])) for i in range(len(means))]
            rollback = guard.check_losses(history)
            best = int(np.argmin(means)) if means else 0
            over = len(losses) > window and means[-1] > means[best] + max(means[best], means[0] / 4)
            assert (rollback is not None) == over
            assert rollback is None or rollback.to == best + window
        to = data.draw(st.integers(0, len(losses)))
        history.fold({"kind": "rollback", "to": to, "lr_scale": 0.5, "discarded": 0})
        del losses[to:]


def test_a_resumed_run_looks_at_each_of_its_steps_once_for_all_means() -> None:
    """Steps are made anew from bytes where they are looked at: twenty times each, a run of 10,000 took half a minute more to go on."""
    looked: list[int] = []

    class Watched(Steps):
        def _at(self, i: int) -> StepReport:
            looked.append(i)
            return super()._at(i)

    steps = Watched(history_of(losses=[1.0 + i % 7 for i in range(300)]).steps)
    windows = Windows(20)
    windows.extend(steps)
    assert sorted(looked) == list(range(300))
    steps.append(steps[0])
    looked.clear()
    windows.extend(steps)
    assert looked == list(range(281, 301))


def sampled(metrics: Mapping[int, tuple[float, float | None, int]], losses: dict[int, float] | None = None) -> History:
    """Evaluations with their standard error and rows."""
    history = history_of(losses=[1.0] * 30)
    for step, (metric, error, rows) in metrics.items():
        loss = (losses or {}).get(step, 1.0)
        record = {"kind": "evaluation", "step": step, "metric": metric, "loss": loss, "rows": rows}
        history.fold(record | ({} if error is None else {"error": error}))
    return history


def share(p: float, rows: int) -> tuple[float, float | None, int]:
    """An accuracy, and the standard error of as many right and wrong rows."""
    return p, math.sqrt(p * (1 - p) / (rows - 1)) if rows > 1 else None, rows


@pytest.mark.parametrize(
    ("rows", "best", "last", "diverged"),
    [
        (1, 1.0, 0.0, False),
        (4, 0.75, 0.5, False),
        (4, 1.0, 0.0, False),
        (6, 1.0, 0.0, True),
        (32, 0.75, 0.5, False),
        (32, 0.9, 0.3, True),
        (400, 0.85, 0.71, False),
        (400, 0.85, 0.69, True),
    ],
)
def test_a_fall_of_the_metric_counts_where_chance_does_not_explain_it(
    rows: int, best: float, last: float, diverged: bool
) -> None:
    history = sampled({0: share(0.5, rows), 10: share(best, rows), 20: share(last, rows)})
    rollback = DivergenceGuard().check_metric(history)
    assert (rollback is not None) == diverged
    assert rollback is None or rollback.to == 10


@pytest.mark.parametrize(("now", "diverged"), [(1.9, False), (2.1, True)])
def test_a_held_out_likelihood_whose_loss_doubles_has_diverged(now: float, diverged: bool) -> None:
    metrics = dict.fromkeys((0, 10, 20), (0.3, 0.01, 50))
    history = sampled(metrics, {0: 1.5, 10: 1.0, 20: now})
    rollback = DivergenceGuard().check(history, likelihood=True)
    assert (rollback is not None) == diverged
    assert rollback is None or rollback.to == 10
    assert DivergenceGuard().check(history) is None, "a loss of options may double while more of them come out right"
    assert DivergenceGuard(loss=0.0).check(history, likelihood=True) is None


def test_two_evaluations_of_a_likelihood_are_enough() -> None:
    history = sampled(dict.fromkeys((0, 10), (0.3, 0.01, 50)), {0: 1.0, 10: 2.1})
    rollback = DivergenceGuard().check_held_out(history, likelihood=True)
    assert rollback == Rollback(0, "held-out loss 2.1 is far above the lowest, 1 at step 0")
    assert DivergenceGuard().check_held_out(sampled({0: (0.3, 0.01, 50)}), likelihood=True) is None


def test_weights_of_no_use_are_left_by_one_step_at_least() -> None:
    guard = DivergenceGuard(window=2)
    assert guard.spoilt(history_of(losses=[3.0, 2.0, 1.0]), "why") == Rollback(2, "why")
    assert guard.spoilt(history_of(losses=[1.0, 1.0, 2.0]), "why") == Rollback(2, "why")
    assert guard.spoilt(history_of(losses=[1.0]), "why") == Rollback(0, "why")
    assert guard.spoilt(history_of(), "why") == Rollback(0, "why")
