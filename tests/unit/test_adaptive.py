"""Adaptive eps on losses whose rounding noise and derivatives are known: it goes where the error of g is least."""

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from twinpass.core import Estimate, Observation, PrefixReport, Probe, StepReport
from twinpass.schedule.adaptive import FACTORS, AdaptiveEpsilon
from twinpass.schedule.epsilon import ConstantEpsilon, CosineEpsilon, Epsilon, JoinedEpsilon, Known
from twinpass.schedule.inference import (
    AMPLIFIED,
    BALANCE,
    DOUBT,
    NOISE,
    SATURATED,
    Evidence,
    Trial,
    checks_of,
    infer,
)

RESOLUTION = 2.0**-23
Accepted = Callable[[float], float | None]


@dataclass
class Loss:
    """``1 + slope e + curvature e^2 / 2 + third e^3 / 6`` along every probe, to within Gaussian noise.

    ``reflection`` is the error of g at eps 1 that reflected lanes add.
    """

    seed: int = 0
    noise: float = 2e-7
    slope: float = 1.0
    curvature: float = 40.0
    third: float = 600.0
    reflection: float = 0.0
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def at(self, e: float) -> float:
        smooth = 1 + self.slope * e + self.curvature * e**2 / 2 + self.third * e**3 / 6
        return float(smooth + self.noise * self.rng.normal())

    def report(self, eps: float, trials: Sequence[float] = ()) -> StepReport:
        """A step at ``eps``, tried at ``trials``."""
        ladder = tuple((e, self.at(e), self.at(-e)) for e in trials)
        off = self.reflection * eps * self.rng.choice([-1, 1]) + self.noise / eps * self.rng.normal() / np.sqrt(2)
        pair = ((float(off),), (0.0,)) if self.reflection else ((), ())
        prefix = PrefixReport(accepted=int(bool(self.reflection)))
        observed = Observation(
            prefix, approximate=pair[0], exact=pair[1], ladder=ladder, base=self.at(0.0) if trials else None
        )
        return StepReport(0, Estimate((Probe(1),), eps, ((1.0, 1.0),), (0.0,)), (0.0,), 0.0, observed=observed)


def none(eps: float) -> None:
    """Nothing is reflected."""


def follow(epsilon: Epsilon, loss: Loss, steps: int = 50, order: int = 2, accepted: Accepted = none) -> list[float]:
    """Every step's eps."""
    history: list[StepReport] = []
    for step in range(steps):
        known = Known(tuple(history), order, RESOLUTION, accepted)
        eps = epsilon.at(step, known)
        assert epsilon.at(step, known) == eps
        history.append(loss.report(eps, epsilon.trials(step, eps, known)))
    return [report.estimate.eps for report in history]


def optimum(loss: Loss, order: int) -> float:
    """Where noise and truncation (and reflection) together are least."""
    eps = np.geomspace(1e-7, 1.0, 20001)
    noise = loss.noise**2 / (2 * eps**2) * (4 if order == 1 else 1)
    truncation = loss.third * eps**2 / 6 if order == 2 else loss.curvature * eps / 2
    if loss.reflection:
        noise *= AMPLIFIED
    return float(eps[np.argmin(noise + truncation**2 + (loss.reflection * eps) ** 2)])


def test_the_optimum_is_the_analytic_one() -> None:
    loss = Loss()
    assert optimum(loss, 2) == pytest.approx((3 * loss.noise / loss.third) ** (1 / 3), rel=1e-2)
    assert optimum(loss, 1) == pytest.approx(8**0.25 * np.sqrt(loss.noise / loss.curvature), rel=1e-2)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("start", [1e-1, 1e-6])
@pytest.mark.parametrize("order", [2, 1])
def test_it_comes_within_a_factor_of_two_of_the_optimum(order: int, start: float, seed: int) -> None:
    best = optimum(Loss(), order)
    assert 1e-6 < best < 1e-2
    assert 0.5 < follow(AdaptiveEpsilon(start=start), Loss(seed), order=order)[-1] / best < 2


@pytest.mark.full
def test_reflection_counts_as_error() -> None:
    """In the median of nine runs; six measurements of what is as large as the noise say little in any one."""
    best = optimum(Loss(reflection=30.0), 2)
    assert best < 0.1 * optimum(Loss(), 2)
    epsilon = AdaptiveEpsilon(start=1e-3)
    ends = [follow(epsilon, Loss(seed, reflection=30.0), accepted=lambda eps: 1.0)[-1] for seed in range(9)]
    assert 0.5 < np.median(ends) / best < 2


@pytest.mark.parametrize("seed", range(6))
def test_reflection_is_told_from_rounding(seed: int) -> None:
    """Of ten times its square, in twelve checks: the plus loss is shared, so that the difference has the noise of one g."""
    eps, noise = 1e-4, 2e-7
    rounding = noise**2 / 2
    loss = Loss(seed, noise=noise, reflection=np.sqrt(10 * rounding) / eps**2, third=0.0)
    reports = [loss.report(eps, (eps / 4, eps, 4 * eps)) for _ in range(12)]
    trials = [trial for report in reports if (trial := Trial.of(report.observed))]
    errors = infer(trials, checks_of(reports, 1.0), 2, RESOLUTION)
    for found, true in ((errors.rounding, rounding), (errors.reflection, loss.reflection**2)):
        assert 1 / 6 < float(np.exp(errors.weights @ np.log(found))) / true < 6


def test_checks_where_losses_saturate_do_not_count() -> None:
    loss = Loss(reflection=1.0)
    assert len(checks_of([loss.report(1e-4), loss.report(1e-2)], 1e-3)) == 1


def test_checks_of_steps_that_reflected_nothing_do_not_count() -> None:
    """Their two g are the same numbers: taken for a check, they would say that there is no rounding."""
    report = Loss(reflection=1.0).report(1e-4)
    same = changed(report.observed, prefix=PrefixReport(rejected=3), approximate=report.observed.exact)
    assert checks_of([changed(report, observed=same)], 1.0) == []


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("start", [1e-1, 1e-4])
def test_it_keeps_the_hit_target(start: float, seed: int) -> None:
    """The optimum is at 1e-3, but only 0.8 of the reflections are accepted at 1.25e-4, and fewer above."""
    chosen = follow(AdaptiveEpsilon(start=start), Loss(seed), accepted=lambda eps: min(1.0, 1e-4 / eps))
    assert all(1e-4 / eps >= 0.8 for eps in chosen[1:])
    assert chosen[-1] > 5e-5
    high = follow(AdaptiveEpsilon(start=start, target=0.2), Loss(seed), accepted=lambda eps: min(1.0, 1e-4 / eps))
    assert all(1e-4 / eps >= 0.2 for eps in high[1:])
    assert max(high[1:]) > 1.25e-4


def test_where_no_eps_is_accepted_the_gradient_comes_first() -> None:
    """It goes on to where the error of g is least, and no further down for hits that it would not get."""
    noisy = Loss(noise=2e-6)
    for accepted in (lambda eps: 0.1, lambda eps: 1.0 if eps < 2e-6 else 0.0):
        found = follow(AdaptiveEpsilon(start=1e-4), Loss(noise=2e-6), accepted=accepted)[-1]
        assert 0.5 < found / optimum(noisy, 2) < 2


@pytest.mark.parametrize(
    ("loss", "end"),
    [(Loss(noise=1e-16), 1e-4), (Loss(noise=5e-7, third=1e-6, curvature=0.0), 3e-3)],
    ids=["low", "high"],
)
@pytest.mark.parametrize("start", [1e-4, 1e-3, 3e-3])
def test_it_stays_within_its_bounds(start: float, loss: Loss, end: float) -> None:
    chosen = follow(AdaptiveEpsilon(start=start, lowest=1e-4, highest=3e-3), loss)
    assert all(1e-4 <= eps <= 3e-3 for eps in chosen)
    assert chosen[-1] == pytest.approx(end)


def test_it_moves_up_where_the_losses_do_not_differ_at_all() -> None:
    flat = Loss(noise=0.0, slope=0.0, curvature=0.0, third=0.0)
    chosen = follow(AdaptiveEpsilon(start=1e-5), flat, 8)
    assert chosen[:5] == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
    assert chosen[5:] == pytest.approx([1e-1] * 3)


def test_it_moves_far_down_where_a_loss_was_not_finite() -> None:
    tried = Loss().report(0.05, (0.0125, 0.05, 0.2))
    overflowed = changed(tried, observed=changed(tried.observed, ladder=tried.observed.ladder[:2]))
    assert Trial.of(overflowed.observed) is None
    assert AdaptiveEpsilon().at(1, Known([overflowed])) == pytest.approx(5e-5)


def test_between_trials_eps_stays() -> None:
    loss, epsilon = Loss(), AdaptiveEpsilon()
    for eps in (1e-5, 1e-3, 1e-2):
        assert epsilon.at(1, Known([loss.report(1e-4, (1e-4,)), loss.report(eps)])) == eps


def tried_at(epsilon: Epsilon, scales: Sequence[float]) -> list[int]:
    """The steps that make trials, if step i is at ``scales[i]``."""
    loss, history, found = Loss(), list[StepReport](), []
    for step, eps in enumerate(scales):
        trials = epsilon.trials(step, eps, Known(history))
        assert trials in ((), (eps / 4, eps, 4 * eps))
        found += [step] if trials else []
        history.append(loss.report(eps, trials))
    return found


def test_trials_become_rare_once_eps_has_settled() -> None:
    assert tried_at(AdaptiveEpsilon(), [1e-3] * 100) == [0, 1, 2, 3, 5, 9, 17, 33, 65, 97]
    assert tried_at(AdaptiveEpsilon(every=4), [1e-3] * 20) == [0, 1, 2, 3, 5, 9, 13, 17]
    assert tried_at(AdaptiveEpsilon(), [1e-3 * 4**i for i in range(6)]) == [0, 1, 2, 3, 4, 5]
    assert tried_at(AdaptiveEpsilon(), [1e-3] * 7 + [3e-3] * 10) == [0, 1, 2, 3, 5, 7, 8, 9, 10, 12, 16]


@pytest.mark.parametrize("eps", [1e-3, 3e-3])
def test_trials_without_noise_show_the_third_derivative_and_the_curvature(eps: float) -> None:
    """Within a step of the grid; one value alone would leave a factor of two open, as of any single draw."""
    reports = [Loss(seed, noise=1e-12).report(eps, (eps / 4, eps, 4 * eps)) for seed in range(12)]
    trials = [trial for report in reports if (trial := Trial.of(report.observed))]
    for order, truncation in ((2, (600 / 6) ** 2), (1, (40 / 2) ** 2)):
        errors = infer(trials, [], order, 1e-12)
        assert np.exp(errors.weights @ np.log(errors.truncation)) == pytest.approx(truncation, rel=0.6)
        assert errors.rounding.max() < 1e-12 * truncation


@pytest.mark.parametrize("order", [2, 1])
@pytest.mark.parametrize("scale", [1e-6, 1e-5])
def test_trials_show_the_noise(order: int, scale: float) -> None:
    """Half the variance of a loss, from 12 trials (24 or 36 degrees of freedom): within a factor of 4 in the square."""
    reports = [Loss(seed).report(scale, (scale / 4, scale, 4 * scale)) for seed in range(12)]
    errors = infer([trial for report in reports if (trial := Trial.of(report.observed))], [], order, RESOLUTION)
    assert 0.25 < np.exp(errors.weights @ np.log(errors.rounding)) / 2e-14 < 4


def test_a_saturated_rung_is_taken_for_truncation() -> None:
    """Where the loss has moved by 0.3 of itself, an error as large as the slope; the rungs below count as they are."""
    eps, plus, minus = np.array([0.01, 0.04, 0.16]), np.array([1.01, 1.05, 1.6]), np.array([0.99, 0.96, 0.9])
    rung, below = Trial(eps, plus, minus, 1.0).evidence(2)
    at = 0.16 * SATURATED / 0.6
    assert rung.x == pytest.approx([0.6 / 0.16])
    assert rung.v == pytest.approx([at**2])
    assert rung.noise == pytest.approx(np.array([[at**-2]]))
    assert below.x == pytest.approx([0.09 / 0.08 - 1.0])
    assert below.v == pytest.approx([0.04**2 - 0.01**2])
    assert below.noise == pytest.approx(np.array([[0.04**-2 + 0.01**-2]]))
    (all_of_it,) = Trial(eps, 1 + 0.1 * eps, 1 - 0.1 * eps, 1.0).evidence(2)
    assert len(all_of_it.x) == 2
    assert len(Trial(eps, plus + 9, minus, 1.0).evidence(1)) == 1


def test_the_likelihood_is_that_of_a_gaussian() -> None:
    (evidence,) = Trial(np.array([1.0, 2.0, 4.0]), np.array([1.0, 1.1, 1.2]), np.array([0.9, 0.9, 0.8]), 1.0).evidence(
        2
    )
    n, ratio = 0.3, 0.02
    covariance = n**2 * (evidence.noise + ratio * np.outer(evidence.v, evidence.v))
    expected = multivariate_normal(np.zeros(2), covariance).logpdf(evidence.x) + np.log(2 * np.pi)
    expected += 0.5 * np.log(np.linalg.det(evidence.noise))
    assert evidence.log_likelihood(np.array(n), np.array(ratio)) == pytest.approx(expected)


def on_the_whole_grid(trials: Sequence[Trial], checks: Sequence[Evidence], eps: float) -> float:
    """The mean square of reflected g's error, with every candidate of n, truncation and reflection at once."""
    n = RESOLUTION * max(1.0, abs(trials[0].base)) * NOISE[:, None, None]
    truncation, reflection = BALANCE[:, None] ** -6.0, BALANCE**-4.0
    log = -0.5 * (np.log(NOISE)[:, None, None] / DOUBT) ** 2 + 0.0 * (truncation + reflection)
    log = log + sum(each.log_likelihood(n, truncation) for trial in trials for each in trial.evidence(2))
    log = log + sum(each.log_likelihood(n, reflection) for each in checks)
    weights = np.where(log > log.max() + np.log(1e-4), np.exp(log - log.max()), 0.0)
    found = AMPLIFIED * n**2 / eps**2 + n**2 * truncation * eps**4 + n**2 * reflection * eps**2
    return float(np.exp(np.sum(weights * np.log(found)) / weights.sum()))


def test_the_grid_is_summed_over_without_being_held() -> None:
    """All of it would be 4 MB an array; what comes and goes in such pieces by a trial leaves holes in the heap."""
    loss, eps = Loss(reflection=30.0), 1e-4
    reports = [loss.report(eps, (eps / 4, eps, 4 * eps)) for _ in range(12)]
    trials = [changed(trial, base=1.0) for report in reports if (trial := Trial.of(report.observed))]
    checks = checks_of(reports, 1.0)
    tracemalloc.start()
    found = infer(trials, checks, 2, RESOLUTION).at(FACTORS, reflected=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6 < 8 * len(NOISE) * len(BALANCE) ** 2
    for i in (0, 80, 160):
        assert found[i] == pytest.approx(on_the_whole_grid(trials, checks, FACTORS[i]), rel=1e-9)


# --- schedules beside it


def test_cosine_falls_from_start_to_end_and_stays() -> None:
    cosine = CosineEpsilon(start=1e-2, end=1e-4, steps=4)
    half = np.sqrt(0.5) / 2
    expected = [1e-2, 1e-4 + 0.0099 * (0.5 + half), 1e-4 + 0.0099 / 2, 1e-4 + 0.0099 * (0.5 - half), 1e-4, 1e-4]
    assert [cosine.at(step, Known()) for step in range(6)] == pytest.approx(expected)
    rising = [CosineEpsilon(start=1e-4, end=1e-2, steps=9).at(step, Known()) for step in range(12)]
    assert all(a <= b for a, b in pairwise(rising))
    assert cosine.trials(0, 1e-2, Known()) == ()


def test_joined_schedules_each_begin_at_their_own_step_0() -> None:
    joined = JoinedEpsilon(
        schedules=(ConstantEpsilon(value=0.5), CosineEpsilon(start=0.4, end=0.2, steps=2), ConstantEpsilon(value=0.1)),
        boundaries=(2, 5),
    )
    assert [joined.at(step, Known()) for step in range(7)] == pytest.approx([0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1])
    assert [joined.trials(step, 0.1, Known()) for step in range(7)] == [()] * 7


def test_an_adaptive_schedule_after_a_boundary_sees_its_own_steps_only() -> None:
    second = AdaptiveEpsilon(start=1e-4)
    joined = JoinedEpsilon(schedules=(AdaptiveEpsilon(start=1e-2), second), boundaries=(3,))
    chosen = follow(joined, Loss(), 8)
    assert (chosen[0], chosen[3]) == (1e-2, 1e-4)
    before = [Loss().report(1e-2, (1.0, 1.0, 1.0))] * 3
    own = [Loss().report(1e-4, (2.5e-5, 1e-4, 4e-4))]
    known = Known([*before, *own], 1, RESOLUTION, lambda eps: 0.9)
    assert joined.at(4, known) == second.at(1, changed(known, steps=own))
    assert joined.trials(3, 1e-4, Known(before)) == (2.5e-5, 1e-4, 4e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaptiveEpsilon(start=1.0), r"start: 1 is not between lowest \(1e-06\) and highest \(0.1\)"),
        (lambda: AdaptiveEpsilon(start=1e-3, lowest=1e-2), "start: 0.001 is not between"),
        (lambda: AdaptiveEpsilon(target=1.0), "less than 1"),
        (lambda: AdaptiveEpsilon(every=0), "greater than or equal to 1"),
        (lambda: AdaptiveEpsilon(lowest=0.0), "greater than 0"),
        (lambda: CosineEpsilon(start=0.0, end=1.0, steps=2), "greater than 0"),
        (lambda: CosineEpsilon(start=1.0, end=1.0, steps=0), "greater than or equal to 1"),
        (
            lambda: JoinedEpsilon(schedules=(ConstantEpsilon(value=1e-3),), boundaries=(3,)),
            "1 schedules meet at 0 steps",
        ),
        (
            lambda: JoinedEpsilon(schedules=(ConstantEpsilon(value=1e-3),) * 3, boundaries=(3,)),
            "3 schedules meet at 2 steps",
        ),
        (lambda: JoinedEpsilon(schedules=(ConstantEpsilon(value=1e-3),) * 3, boundaries=(3, 3)), "must rise"),
        (lambda: JoinedEpsilon(schedules=(ConstantEpsilon(value=1e-3),) * 3, boundaries=(3, 2)), "must rise"),
        (
            lambda: JoinedEpsilon(schedules=(ConstantEpsilon(value=1e-3),) * 2, boundaries=(0,)),
            "greater than or equal to 1",
        ),
    ],
)
def test_bad_settings(make: Callable[[], Epsilon], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
