"""One step of MeZO: Algorithm 1 of Malladi et al. 2023 (arXiv 2305.17333), with its passes in tandem."""

from collections.abc import Callable, Sequence

from twinpass.core import Probe, StepReport
from twinpass.engine.base import Engine
from twinpass.estimate.base import Estimator
from twinpass.objective.base import Objective
from twinpass.task.template import Example

Clip = Callable[[Sequence[float]], tuple[float, ...]]


def measure(
    engine: Engine,
    estimator: Estimator,
    objective: Objective,
    clip: Clip,
    *,
    step: int,
    examples: Sequence[Example],
    probes: Sequence[Probe],
    eps: float,
    lr: float,
) -> StepReport:
    """Everything of a step but its update, which is made once the report is in the journal.

    ``step`` counts from 0, ``examples`` are the minibatch B, and each of the q ``probes`` is a seed s that z is
    regenerated from; ``clip`` bounds the projected gradients.
    """
    lanes = estimator.lanes(probes, eps)
    scores = engine.score(objective.requests(examples), lanes)
    losses = [objective.loss(examples, values) for values in scores.values]
    estimate = estimator.estimate(probes, eps, losses)
    return StepReport(step, estimate, clip(estimate.gradients), lr, scores.work, scores.cache)


def apply(engine: Engine, report: StepReport) -> None:
    """``theta -= lr / q * sum_k g_k z_k``."""
    engine.update(report.terms)
