"""What limits eps: rounding from below, curvature from above; and which eps to hold the others against."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from twinpass.analysis.sweep import Course


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


def loss_noise(courses: Sequence[Course], reference: Sequence[float]) -> float:
    """Standard deviation of a loss's rounding error in nats, from the smallest eps: (g - reference) sqrt(2) eps."""
    smallest = min(courses, key=lambda course: course.eps)
    off = np.subtract(smallest.gradients, reference)
    return float(np.sqrt(np.mean(np.square(off))) * np.sqrt(2) * smallest.eps)


def curvature(even: Mapping[float, Sequence[float]]) -> list[dict[str, Any]]:
    """By eps, the root mean square of (L+ + L- - 2 L0) / eps^2 over the probes; ``even`` holds the numerators."""
    return [{"eps": eps, "rms": float(np.sqrt(np.mean(np.square(even[eps]))) / eps**2)} for eps in sorted(even)]
