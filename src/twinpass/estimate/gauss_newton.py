"""Two-sided probes whose scores also give the loss's curvature in their span: steps without a learning rate."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from twinpass.core import Estimate, Lane, Probe, Score
from twinpass.estimate.base import Estimator
from twinpass.objective.goal import Goal
from twinpass.settings import STRICT, Several
from twinpass.task.example import Example

Damping = Annotated[float, Field(ge=1e-12, le=1e12)]
"""Less is lost in rounding, so that nothing would keep H from being singular."""

FURTHEST = 10.0
"""Nats that a step may move scores by in the root mean square, as far as their derivatives say: a factor of 22,000 in probability."""


@dataclass(frozen=True, config=STRICT)
class GaussNewton(Estimator):
    """``(H + damping mean(diag H) I)^-1 g`` in the span of the probes, where SPSA has g (docs/maths/gauss_newton.md).

    The scores of both signs give each score's derivative along every z, and with it ``g_k = z_k . grad L`` and the Gauss-Newton
    matrix ``H_kl = z_k^T J^T C J z_l``; C is the objective's curvature by the scores (Schraudolph 2002). A learning rate of 1
    is a whole step. Where a model is sure of what is wrong C is next to nothing and the step without bounds, so that it is cut to
    what moves scores by 10 nats in the root mean square.

    Args:
        damping: what is added to H's diagonal, in units of its mean (Levenberg-Marquardt).
    """

    bias_order: ClassVar[int] = 2
    two_sided: ClassVar[bool] = True
    curved: ClassVar[bool] = True
    measures_length: ClassVar[bool] = True

    probes: Several = 8
    damping: Damping = 1.0

    def lanes(self, probes: Sequence[Probe], eps: float) -> list[Lane]:
        return [Lane(probe, sign, eps) for probe in probes for sign in (1, -1)]

    def estimate(self, probes: Sequence[Probe], eps: float, losses: Sequence[float]) -> Estimate:
        pairs = tuple(zip(losses[0::2], losses[1::2], strict=True))
        return Estimate(tuple(probes), eps, pairs, tuple((plus - minus) / (2 * eps) for plus, minus in pairs))

    def refine(
        self, estimate: Estimate, goal: Goal, examples: Sequence[Example], scores: Sequence[Sequence[Score]]
    ) -> Estimate:
        pairs = list(zip(scores[0::2], scores[1::2], strict=True))
        tangents = [[(plus - minus) / (2 * estimate.eps) for plus, minus in zip(*pair, strict=True)] for pair in pairs]
        base = [np.mean(own, axis=0) for own in zip(*scores, strict=True)]
        with np.errstate(invalid="ignore"):
            slopes = goal.gradient(examples, base)
            g = np.array([sum(float(s @ t) for s, t in zip(slopes, own, strict=True)) for own in tangents])
            matrix = goal.curvature(examples, base, tangents)
        q = len(g)
        level = float(np.trace(matrix)) / q
        if not np.isfinite(matrix).all() or not np.isfinite(g).all() or level <= 0:
            return replace(estimate, preconditioned=(0.0,) * q if level == 0 else (float("nan"),) * q)
        step = np.linalg.solve(matrix + self.damping * level * np.eye(q), g)
        return replace(estimate, preconditioned=tuple((q * _bounded(step, tangents)).tolist()))


def _bounded(step: Score, tangents: Sequence[Sequence[Score]]) -> Score:
    """``step``, or the part of it that moves scores no further than :data:`FURTHEST`."""
    moved = [sum(k * t for k, t in zip(step, own, strict=True)) for own in zip(*tangents, strict=True)]
    furthest = float(np.sqrt(np.mean(np.concatenate(moved) ** 2)))
    return step if furthest <= FURTHEST else step * (FURTHEST / furthest)
