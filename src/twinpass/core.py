"""Frozen records that travel between the layers, in the words of the paper.

Symbols are those of MeZO (Malladi et al. 2023, arXiv 2305.17333): ``theta`` the weights, ``z`` a random
direction, ``eps`` the perturbation scale, ``lr`` the learning rate, ``g`` the projected gradient
``(L(theta + eps z) - L(theta - eps z)) / (2 eps)``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Probe:
    """One direction ``z``, named by the seed it is regenerated from (an integer in [0, 2**64))."""

    seed: int


@dataclass(frozen=True, slots=True)
class Lane:
    """One weight variant ``theta + sign * eps * z``. Sign 0 is the base lane, ``theta`` itself."""

    probe: Probe | None = None
    sign: int = 0
    eps: float = 0.0

    @property
    def scale(self) -> float:
        """The factor of ``z``."""
        return self.sign * self.eps


BASE = Lane()


@dataclass(frozen=True, slots=True)
class Term:
    """A change of the weights: ``theta += scale * z(seed)``, the only kind of change that MeZO makes."""

    seed: int
    scale: float


@dataclass(frozen=True, slots=True)
class Request:
    """Ask for the log-probability of every completion token, given the prompt and the tokens before it."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        """The tokens a model has to read: all but the last, whose own output nobody asks for."""
        return self.prompt + self.completion[:-1]


Score = NDArray[np.float64]
"""Log-probabilities (nats) of a request's completion tokens, shape ``[len(completion)]``."""


@dataclass(frozen=True, slots=True)
class Work:
    """Forward work in token-layers: one token through one decoder layer.

    ``demand`` is what scoring every sequence of every lane on its own, unpadded, would take;
    ``computed`` is what really ran.
    """

    demand: int = 0
    computed: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.demand + other.demand, self.computed + other.computed)

    @property
    def hit_rate(self) -> float:
        """Share of the demand that did not have to run."""
        return 1.0 - self.computed / self.demand if self.demand else 0.0


@dataclass(frozen=True, slots=True)
class Scores:
    """What an engine returns: ``values[lane][request]``, and the work it took."""

    values: Sequence[Sequence[Score]]
    work: Work


@dataclass(frozen=True, slots=True)
class Estimate:
    """A zeroth-order gradient, ``sum_k gradients[k] * z(probes[k])`` over ``q`` probes.

    ``losses[k]`` holds (L+, L-) of probe ``k``; ``loss`` is their mean over all lanes, an estimate of L(theta).
    """

    probes: tuple[Probe, ...]
    eps: float
    losses: tuple[tuple[float, float], ...]
    gradients: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Mean loss over both signs of all probes."""
        return sum(plus + minus for plus, minus in self.losses) / (2 * len(self.losses))


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did: its estimate, the gradients after clipping, ``lr``, and the work."""

    step: int
    estimate: Estimate
    clipped: tuple[float, ...]
    lr: float
    work: Work

    @property
    def terms(self) -> tuple[Term, ...]:
        """The update ``theta -= lr / q * sum_k clipped[k] * z_k`` as a list of terms."""
        q = len(self.clipped)
        return tuple(
            Term(probe.seed, -self.lr * g / q) for probe, g in zip(self.estimate.probes, self.clipped, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metric (larger is better) and loss (nats) over ``examples`` held-out rows."""

    metric_name: str
    metric: float
    loss: float
    examples: int


@dataclass(frozen=True, slots=True)
class Rollback:
    """Go back to the weights after ``to`` steps, because of ``reason``."""

    to: int
    reason: str
