"""Histories of steps that nobody took."""

from collections.abc import Sequence

from twinpass.core import Estimate, Probe, StepReport, Work
from twinpass.steps import Steps
from twinpass.train.history import History


def history_of(
    gradients: Sequence[Sequence[float]] = (), losses: Sequence[float] = (), metrics: dict[int, float] | None = None
) -> History:
    """Steps with these gradients, or with these mean losses; the clipped gradients are all 0."""
    rows = list(gradients) or [(0.0,)] * len(losses)
    means = list(losses) or [1.0] * len(rows)
    steps = []
    for step, (row, loss) in enumerate(zip(rows, means, strict=True)):
        probes = tuple(Probe(k) for k in range(len(row)))
        estimate = Estimate(probes, 1e-3, ((loss + 0.25, loss - 0.25),) * len(row), tuple(row))
        steps.append(StepReport(step, estimate, (0.0,) * len(row), 1e-3, Work()))
    return History(Steps(steps), dict(metrics or {}), len(steps))
