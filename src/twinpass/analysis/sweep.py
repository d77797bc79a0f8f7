"""Sweep eps and policies over many probes of one batch: hit rate, work, and fidelity of the gradient, side by side."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from twinpass.core import BASE, Probe, StepReport, Work
from twinpass.engine.base import Engine
from twinpass.estimate.base import Estimator
from twinpass.estimate.jvp import Jvp
from twinpass.objective.base import Objective
from twinpass.perturb.noise import derive_seed
from twinpass.report.fidelity import Fidelity
from twinpass.reuse.base import Policy
from twinpass.reuse.exact import Exact
from twinpass.reuse.plan import Situation
from twinpass.task.template import Example
from twinpass.train.step import apply, measure

EXACT = "exact"


@dataclass(frozen=True)
class Contender:
    """An estimator under a policy. One that ``moves`` is measured along updates of ``lr``, as what it carries follows them."""

    name: str
    estimator: Estimator
    policy: Policy
    moves: bool = False


@dataclass(frozen=True)
class Bench:
    """What is measured on: one batch, and probes from a seed.

    Args:
        clip: bounds the updates that moving contenders make.
        told: called with every part that is done.
    """

    engine: Engine
    objective: Objective
    examples: Sequence[Example]
    seed: int
    probes: int
    lr: float = 0.0
    told: Callable[[str], None] = lambda part: None

    def groups(self, size: int) -> list[list[Probe]]:
        """The probes, ``size`` at a time."""
        probes = [Probe(derive_seed(self.seed, "profile", k)) for k in range(self.probes)]
        return [probes[i : i + size] for i in range(0, self.probes, size)]

    def measure(
        self, contender: Contender, probes: Sequence[Probe], eps: float, history: Sequence[StepReport], coin: float
    ) -> StepReport:
        """One step's estimate, planned by what ``history`` measured."""
        return measure(
            self.engine,
            contender.estimator,
            self.objective,
            contender.policy,
            tuple,
            Situation(self.engine.layers, history, coin),
            step=len(history),
            examples=self.examples,
            probes=probes,
            eps=eps,
            lr=self.lr,
        )


@dataclass
class Course:
    """A contender at one eps: gradients by probe, work, and what was measured on the way.

    ``exact`` are exact gradients at the same weights, where those moved.
    """

    eps: float
    gradients: list[float] = field(default_factory=list)
    losses: list[tuple[float, float]] = field(default_factory=list)
    exact: list[float] = field(default_factory=list)
    work: Work = field(default_factory=Work)
    seconds: float = 0.0
    accepted: int = 0
    offered: int = 0
    errors: tuple[float, ...] = ()
    drift: tuple[float, ...] = ()

    def add(self, report: StepReport, seconds: float) -> None:
        """Take in a step."""
        self.gradients += report.estimate.gradients
        self.losses += report.estimate.losses
        self.work += report.work
        self.seconds += seconds
        self.accepted += report.observed.prefix.accepted
        self.offered += report.observed.prefix.accepted + report.observed.prefix.rejected


def run(bench: Bench, contender: Contender, eps: float) -> Course:
    """Measure a contender over all probes at one eps.

    A policy that decides by measurements gets one first, on the first probes; its work is not counted.
    """
    course, size = Course(eps), contender.estimator.probes
    groups = bench.groups(size)
    history: list[StepReport] = []
    if contender.policy.approximate:
        first = bench.measure(contender, groups[0], eps, history, coin=1.0)
        prefix = first.observed.prefix
        course.errors, course.drift = prefix.errors, prefix.drift
        history.append(first)
        if contender.moves:
            bench.engine.update([])  # the weights stay; what is carried goes on from here
    for number, probes in enumerate(groups):
        coin = derive_seed(bench.seed, "coin", number) / 2**63
        started = time.perf_counter()
        report = bench.measure(contender, probes, eps, history, coin)
        course.add(report, time.perf_counter() - started)
        if contender.moves:
            course.exact += bench.measure(exactly(contender), probes, eps, [], coin=1.0).estimate.gradients
            apply(bench.engine, report)
        history.append(report)
        bench.told(f"{contender.name} at eps {eps:.0e}")
    if contender.moves:
        bench.engine.reset()
    return course


def exactly(contender: Contender) -> Contender:
    """The same estimator without approximation."""
    return Contender(EXACT, contender.estimator, Exact())


def row(course: Course, contender: Contender, exact: Course, reference: Sequence[float], dtype: str) -> dict[str, Any]:
    """One line of the result. ``reference`` are gradients that all eps are held against."""
    fidelity = Fidelity.of(course.gradients, course.exact or exact.gradients)
    against = None if course.exact else Fidelity.of(course.gradients, reference)
    return {
        "policy": contender.name,
        "eps": course.eps,
        "dtype": dtype,
        "hit_rate": course.work.hit_rate,
        "accepted_hit_rate": course.accepted / course.offered if course.offered else None,
        "compute_saved": 1 - course.work.computed / exact.work.computed,
        "relative_error": fidelity.relative_error,
        "correlation": fidelity.correlation,
        "sign_agreement": fidelity.sign_agreement,
        "reference_error": None if against is None else against.relative_error,
        "probes": fidelity.probes,
        "reused_by_source": dict(course.work.reused),
        "token_layers": {"demand": course.work.demand, "computed": course.work.computed},
        "seconds_per_probe": course.seconds / fidelity.probes,
        "seconds_saved": 1 - course.seconds / exact.seconds,
    }


def derivatives(bench: Bench) -> list[float]:
    """``z . grad L`` of every probe, by forward-mode differentiation."""
    found: list[float] = []
    for probes in bench.groups(1):
        found += bench.measure(Contender("jvp", Jvp(), Exact()), probes, 1.0, [], coin=1.0).estimate.gradients
        bench.told("jvp")
    return found


def base_loss(bench: Bench) -> float:
    """The loss of the base lane."""
    values = bench.engine.score(bench.objective.requests(bench.examples), [BASE]).values[0]
    return bench.objective.loss(bench.examples, values)


def steadiest(courses: Sequence[Course]) -> Course:
    """The exact course whose gradients differ least from its neighbours' in eps: the best reference where there is no jvp."""
    if len(courses) < 3:
        return courses[0]
    ordered = sorted(courses, key=lambda course: course.eps)
    away = [
        np.linalg.norm(np.subtract(a.gradients, b.gradients)) + np.linalg.norm(np.subtract(b.gradients, c.gradients))
        for a, b, c in zip(ordered, ordered[1:], ordered[2:], strict=False)
    ]
    return ordered[1 + int(np.argmin(away))]


def floor_and_curvature(courses: Sequence[Course], reference: Sequence[float], base: float) -> dict[str, Any]:
    """What limits eps from below and from above, from exact two-sided losses.

    ``loss_noise``: standard deviation of a loss's rounding error, from the smallest eps: (g - reference) sqrt(2) eps.
    ``curvature``: by eps, the root mean square of (L+ + L- - 2 L0) / eps^2.
    """
    smallest = min(courses, key=lambda course: course.eps)
    off = np.subtract(smallest.gradients, reference)
    even = {course.eps: [plus + minus - 2 * base for plus, minus in course.losses] for course in courses}
    return {
        "loss_noise": float(np.sqrt(np.mean(np.square(off))) * np.sqrt(2) * smallest.eps),
        "curvature": [
            {"eps": eps, "rms": float(np.sqrt(np.mean(np.square(values))) / eps**2)}
            for eps, values in sorted(even.items())
        ],
    }


def with_probes(contender: Contender, probes: int) -> Contender:
    """The contender with at most so many probes at a time."""
    size = min(contender.estimator.probes, probes)
    return replace(contender, estimator=replace(contender.estimator, probes=size))


Rows = Sequence[Mapping[str, Any]]
