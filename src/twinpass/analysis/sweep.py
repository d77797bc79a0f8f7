"""Sweep eps and policies over many probes of one batch: hit rate, work, and fidelity of the gradient, side by side.

Losses are remembered by lane, so that what several policies need is scored once; the work and the time of each policy
are those of a step of its own.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from twinpass.core import BASE, Estimate, Lane, Observation, PrefixReport, Probe, Score, StepReport, Work
from twinpass.engine.base import Engine
from twinpass.estimate.base import Estimator
from twinpass.estimate.jvp import Jvp
from twinpass.estimate.spsa import Spsa
from twinpass.objective.base import Objective
from twinpass.perturb.noise import derive_seed
from twinpass.reuse.base import Policy
from twinpass.reuse.plan import LanePlan, Situation, Spans, combine
from twinpass.task.example import Example
from twinpass.train.step import Draw, Method, apply, measure


@dataclass(frozen=True)
class Contender:
    """An estimator under a policy. One that ``moves`` is measured along updates of ``lr``, as what it carries follows them."""

    name: str
    estimator: Estimator
    policy: Policy
    moves: bool = False


@dataclass(frozen=True)
class Cost:
    """What a step took."""

    work: Work
    seconds: float


@dataclass
class Course:
    """A contender at one eps: gradients by probe, and what they took. ``exact`` are those without approximation."""

    eps: float
    gradients: list[float] = field(default_factory=list)
    exact: list[float] = field(default_factory=list)
    work: Work = field(default_factory=Work)
    seconds: float = 0.0
    accepted: int = 0
    offered: int = 0

    def add(self, gradients: Sequence[float], exact: Sequence[float], cost: Cost, prefix: PrefixReport) -> None:
        """Take in a step."""
        self.gradients += gradients
        self.exact += exact
        self.work += cost.work
        self.seconds += cost.seconds
        self.accepted += prefix.accepted
        self.offered += prefix.accepted + prefix.rejected


class Bench:
    """One batch on one engine, and probes from a seed.

    Args:
        told: called with every part that is done.
    """

    def __init__(
        self,
        engine: Engine,
        objective: Objective,
        examples: Sequence[Example],
        seed: int,
        probes: int,
        lr: float = 0.0,
        told: Callable[[str], None] = lambda part: None,
    ) -> None:
        self.engine, self.objective, self.examples, self.lr, self.told = engine, objective, examples, lr, told
        self.seed = seed
        self.probes = [Probe(derive_seed(seed, "profile", k)) for k in range(probes)]
        self._requests = objective.requests(examples)
        self._known: dict[tuple[Lane, Spans | None], float] = {}
        self._costs: dict[object, tuple[Cost, PrefixReport]] = {}

    def groups(self, size: int) -> list[list[Probe]]:
        """The probes, ``size`` at a time."""
        return [self.probes[i : i + size] for i in range(0, len(self.probes), size)]

    def coins(self, count: int) -> list[float]:
        """One for each step, spread evenly over [0, 1) so that few of them stand for many, in the order of the seed."""
        drawn = [derive_seed(self.seed, "coin", number) for number in range(count)]
        return [(sorted(drawn).index(coin) + 0.5) / count for coin in drawn]

    def survey(self, probes: Sequence[Probe], eps: float) -> StepReport:
        """Score what most policies need of some probes in one pass; what it measured, as a step's report."""
        spans = Spans("prompt", self.engine.layers)
        exact = [Lane(probe, sign, eps) for probe in probes for sign in (1, -1)]
        reflected = [Lane(probe, -1, eps, "reflected") for probe in probes]
        frozen = [Lane(probe, sign, eps, "base") for probe in probes for sign in (1, -1)]
        lanes = [*exact, *reflected, *frozen, Lane(prefix="base")]
        scores = self.engine.score(self._requests, lanes, spans)
        self._remember(lanes, spans, scores.values)
        self._known[BASE, None] = self._known[Lane(prefix="base"), spans]
        losses = self.losses(exact, None)
        observed = Observation(prefix=scores.prefix, approximate=(0.0,), exact=(0.0,))
        return StepReport(0, Spsa().estimate(probes, eps, losses), (), 0.0, observed=observed)

    def losses(self, lanes: Sequence[Lane], spans: Spans | None) -> list[float]:
        """The losses of lanes; those not known are scored."""
        if missing := [lane for lane in dict.fromkeys(lanes) if _key(lane, spans) not in self._known]:
            needed = list(
                dict.fromkeys([*missing, *(_opposite(lane) for lane in missing if lane.prefix == "reflected")])
            )
            approximate = any(lane.prefix != "own" for lane in needed)
            self._remember(
                needed, spans, self.engine.score(self._requests, needed, spans if approximate else None).values
            )
        return [self._known[_key(lane, spans)] for lane in lanes]

    def cost(self, plan: LanePlan) -> tuple[Cost, PrefixReport]:
        """What a step of this plan takes, the faster of two; measured once for all probes and eps."""
        shape = (tuple((lane.sign, lane.prefix) for lane in (*plan.lanes, *plan.twins)), plan.spans)
        if shape not in self._costs:
            seconds = []
            for _ in range(2):
                started = time.perf_counter()
                scores = self.engine.score(self._requests, [*plan.lanes, *plan.twins], plan.spans)
                seconds.append(time.perf_counter() - started)
            self._costs[shape] = Cost(scores.work, min(seconds)), scores.prefix
        return self._costs[shape]

    def forget(self) -> None:
        """Drop what is known of lanes: the weights or eps change."""
        self._known.clear()

    def _remember(self, lanes: Sequence[Lane], spans: Spans | None, values: Sequence[Sequence[Score]]) -> None:
        for lane, own in zip(lanes, values, strict=True):
            self._known[_key(lane, spans)] = self.objective.loss(self.examples, own)


def run(bench: Bench, contender: Contender, eps: float, seen: Sequence[StepReport]) -> Course:
    """Measure a contender over all probes at one eps, planning by what was ``seen`` there."""
    course, estimator, planner = Course(eps), contender.estimator, contender.policy.planner()
    groups = bench.groups(estimator.probes)
    for probes, coin in zip(groups, bench.coins(len(groups)), strict=True):
        plan = planner.plan(estimator.lanes(probes, eps), Situation(bench.engine.layers, seen, coin))
        approximate = estimator.estimate(probes, eps, bench.losses(plan.lanes, plan.spans))
        gradients = approximate.gradients
        if plan.twins:
            own = [lane for lane in plan.exact if lane.prefix == "own"]
            known = dict(zip(own, bench.losses(own, None), strict=True))
            rest = dict(zip(plan.lanes, bench.losses(plan.lanes, plan.spans), strict=True))
            exact = estimator.estimate(probes, eps, [known[e] if e in known else rest[e] for e in plan.exact])
            gradients = combine(plan, approximate, exact)
        course.add(gradients, two_sided(bench, probes, eps).gradients, *bench.cost(plan))
        bench.told(f"{contender.name} at eps {eps:.0e}")
    return course


def run_moving(bench: Bench, contender: Contender, eps: float) -> Course:
    """The same along updates: each step is compared with exact differences at its own weights.

    A first step that moves nothing measures what the policy plans by; like the survey, it does not count.
    """
    course, history = Course(eps), list[StepReport]()
    groups = bench.groups(contender.estimator.probes)
    method = Method(contender.estimator, bench.objective, contender.policy.planner())
    for number, probes in enumerate([groups[0], *groups]):
        bench.forget()
        started = time.perf_counter()
        draw = Draw(len(history), bench.examples, probes, eps, bench.lr if number else 0.0)
        report = measure(bench.engine, method, draw, Situation(bench.engine.layers, history, coin=1.0))
        cost = Cost(report.work, time.perf_counter() - started)
        if number:
            exact = two_sided(bench, probes, eps).gradients
            course.add(report.estimate.gradients, exact, cost, report.observed.prefix)
            bench.told(f"{contender.name} at eps {eps:.0e}")
        history.append(report)
        apply(bench.engine, report)
    bench.forget()
    bench.engine.reset()
    return course


def two_sided(bench: Bench, probes: Sequence[Probe], eps: float) -> Estimate:
    """Exact two-sided differences."""
    return Spsa().estimate(probes, eps, bench.losses(Spsa().lanes(probes, eps), None))


def exact_course(
    bench: Bench, contender: Contender, eps: float, *, surveys: bool = True
) -> tuple[Course, list[StepReport]]:
    """Exact two-sided differences of all probes, and what surveying the first of them measured."""
    bench.forget()
    course, seen = Course(eps), list[StepReport]()
    for probes in bench.groups(contender.estimator.probes):
        if surveys:
            report = bench.survey(probes, eps)
            seen = seen or [report]
        gradients = two_sided(bench, probes, eps).gradients
        plan = LanePlan(tuple(contender.estimator.lanes(probes, eps)))
        course.add(gradients, gradients, *bench.cost(plan))
        bench.told(f"all at eps {eps:.0e}")
    return course, seen


def derivatives(bench: Bench) -> list[float]:
    """``z . grad L`` of every probe, by forward-mode differentiation."""
    found: list[float] = []
    for probe in bench.probes:
        values = bench.engine.score(bench.objective.requests(bench.examples), Jvp().lanes([probe], 1.0)).values
        losses = [bench.objective.loss(bench.examples, own) for own in values]
        found += Jvp().estimate([probe], 1.0, losses).gradients
        bench.told("forward-mode derivatives")
    return found


def _key(lane: Lane, spans: Spans | None) -> tuple[Lane, Spans | None]:
    return lane, spans if lane.prefix != "own" else None


def _opposite(lane: Lane) -> Lane:
    return Lane(lane.probe, -lane.sign, lane.eps)
