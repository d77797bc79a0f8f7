"""A profile: every contender at every eps and dtype, what limits eps, and a recommendation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from twinpass.analysis.limits import curvature, loss_noise, steadiest
from twinpass.analysis.recommend import recommend
from twinpass.analysis.sweep import Bench, Contender, Course, derivatives, exact_course, run, run_moving
from twinpass.core import BASE, StepReport
from twinpass.estimate.spsa import Spsa
from twinpass.report.fidelity import Fidelity

EXACT = "exact"


@dataclass
class Profile:
    """Collects what is measured, one dtype after another; the first one's exact gradients are the reference for all.

    Args:
        contenders: who is compared; exact two-sided differences are the first.
        eps: perturbation scales.
        differentiates: take the reference from forward-mode differentiation, slow, instead of the steadiest eps.
    """

    contenders: Sequence[Contender]
    eps: Sequence[float]
    differentiates: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    limits: dict[str, Any] = field(default_factory=dict)
    reference: list[float] = field(default_factory=list)
    reference_name: str = ""

    def parts(self, probes: int) -> int:
        """How many parts will be told of, for a progress bar."""
        groups = [-(-probes // contender.estimator.probes) for contender in self.contenders]
        return len(self.eps) * sum(groups) + (probes if self.differentiates and not self.reference else 0)

    def measure(self, bench: Bench, dtype: str) -> None:
        """Measure everything on an engine."""
        exact: dict[float, Course] = {}
        courses: list[tuple[Contender, Course]] = []
        even: dict[float, list[float]] = {}
        surveys = any(contender.policy.approximate and not contender.moves for contender in self.contenders)
        for eps in self.eps:
            exact[eps], seen = exact_course(bench, self.contenders[0], eps, surveys=surveys)
            even[eps] = _even(bench, eps)
            for prefix in (report.observed.prefix for report in seen):
                layer = {"eps": eps, "dtype": dtype, "drift": list(prefix.drift), "errors": list(prefix.errors)}
                self.layers.append(layer)
            # what is known of lanes is lost when the weights move: those that move them come last
            others = sorted(self.contenders[1:], key=lambda contender: contender.moves)
            courses += [(contender, self._run(bench, contender, eps, seen)) for contender in others]
        self._refer(bench, list(exact.values()), dtype)
        noise = loss_noise(list(exact.values()), self.reference)
        self.limits[dtype] = {"loss_noise": noise, "curvature": curvature(even)}
        every = [*((self.contenders[0], course) for course in exact.values()), *courses]
        order = {contender.name: i for i, contender in enumerate(self.contenders)}
        for contender, course in sorted(every, key=lambda pair: order[pair[0].name]):
            self.rows.append(self._row(contender, course, exact[course.eps], dtype))

    def _run(self, bench: Bench, contender: Contender, eps: float, seen: Sequence[StepReport]) -> Course:
        return run_moving(bench, contender, eps) if contender.moves else run(bench, contender, eps, seen)

    def _refer(self, bench: Bench, courses: Sequence[Course], dtype: str) -> None:
        if self.reference:
            return
        if self.differentiates:
            self.reference, self.reference_name = derivatives(bench), f"forward-mode derivative, {dtype}"
        else:
            best = steadiest(courses)
            self.reference, self.reference_name = best.gradients, f"exact two-sided at eps {best.eps:.0e}, {dtype}"

    def _row(self, contender: Contender, course: Course, exact: Course, dtype: str) -> dict[str, Any]:
        fidelity = Fidelity.of(course.gradients, course.exact)
        against = None if contender.moves else Fidelity.of(course.gradients, self.reference).relative_error
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
            "reference_error": against,
            "probes": fidelity.probes,
            "probes_a_step": contender.estimator.probes,
            "reused_by_source": dict(course.work.reused),
            "token_layers": {"demand": course.work.demand, "computed": course.work.computed},
            "seconds_per_probe": course.seconds / fidelity.probes,
            "seconds_saved": 1 - course.seconds / exact.seconds,
        }

    def result(self) -> dict[str, Any]:
        """Everything, for a file."""
        return {
            "rows": self.rows,
            "layers": self.layers,
            "limits": self.limits,
            "reference": self.reference_name,
            "recommendation": recommend(self.rows),
        }


def _even(bench: Bench, eps: float) -> list[float]:
    """``L+ + L- - 2 L0`` of every probe."""
    (base,) = bench.losses([BASE], None)
    losses = bench.losses(Spsa().lanes(bench.probes, eps), None)
    return [plus + minus - 2 * base for plus, minus in zip(losses[0::2], losses[1::2], strict=True)]
