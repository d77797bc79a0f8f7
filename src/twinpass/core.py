"""Frozen records that travel between the layers, in the words of the paper.

Symbols are those of MeZO (Malladi et al. 2023, arXiv 2305.17333): ``theta`` the weights, ``z`` a random
direction, ``eps`` the perturbation scale, ``lr`` the learning rate, ``g`` the projected gradient
``(L(theta + eps z) - L(theta - eps z)) / (2 eps)``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Tokens = tuple[int, ...]
"""Token ids."""

Decode = Callable[[Tokens], str]
"""The text of some tokens, without special ones."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One direction ``z``, named by the seed it is regenerated from (an integer in [0, 2**64)).

    It is zero outside of ``block``, a number that the trainable weights give a part of themselves; None: all of them.
    """

    seed: int
    block: int | None = None


Prefix = Literal["own", "base", "reflected"]
"""Whose keys and values a lane reads for its prefix: its own, the base lane's, or 2 base - those of the opposite sign."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One weight variant ``theta + sign * eps * z``. Sign 0 is the base lane, ``theta`` itself.

    A ``prefix`` other than its own is an approximation: such a lane is not the same as the exact one. A ``linear`` lane's
    scores are those of ``theta`` plus their derivative along ``sign * eps * z``.
    """

    probe: Probe | None = None
    sign: int = 0
    eps: float = 0.0
    prefix: Prefix = "own"
    linear: bool = False

    @property
    def scale(self) -> float:
        """The factor of ``z``."""
        return self.sign * self.eps

    @property
    def exact(self) -> "Lane":
        """The same weights, with every key and value computed under them."""
        return Lane(self.probe, self.sign, self.eps, linear=self.linear)


BASE = Lane()


@dataclass(frozen=True, slots=True)
class Term:
    """A change of the weights: ``theta = keep * theta + scale * z``, ``z`` that of a probe; the only kind of change that MeZO makes."""

    seed: int
    scale: float
    block: int | None = None
    keep: float = 1.0

    @property
    def probe(self) -> Probe:
        """The direction."""
        return Probe(self.seed, self.block)


@dataclass(frozen=True, slots=True)
class WeightsVersion:
    """The weights that a token's keys and values were computed with, in layers below ``layers``.

    ``base`` is the checkpoint's hash, ``updates`` the number of the last update that may have touched them, ``lane`` is
    the variant, and ``adapted`` says whether adapters acted.
    """

    base: str
    layers: int
    updates: int = 0
    lane: Lane = BASE
    adapted: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """Ask for the log-probability of every completion token, given the prompt and the tokens before it.

    ``active_from`` is the activation point: activated adapters act on the tokens from this one on. Other trainable
    weights act everywhere and do not look at it. ``relative``: only differences between completions of the same prompt under
    the same lane matter, so that an engine may leave a constant out of them all, such as the log of the softmax's sum.
    """

    prompt: Tokens
    completion: Tokens
    active_from: int = 0
    relative: bool = False

    @property
    def inputs(self) -> Tokens:
        """The tokens a model has to read: all but the last, whose own output nobody asks for."""
        return self.prompt + self.completion[:-1]


Score = NDArray[np.float64]
"""Log-probabilities (nats) of a request's completion tokens, shape ``[len(completion)]``; relative ones if it asks for no more."""


@dataclass(frozen=True, slots=True)
class Work:
    """Forward work in token-layers: one token through one decoder layer.

    ``demand`` is what scoring every sequence of every lane on its own, unpadded, would take; ``computed`` is what
    really ran; ``reused`` tells by source where the difference came from.
    """

    demand: int = 0
    computed: int = 0
    reused: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: "Work") -> "Work":
        sources = {*self.reused, *other.reused}
        reused = {name: self.reused.get(name, 0) + other.reused.get(name, 0) for name in sorted(sources)}
        return Work(self.demand + other.demand, self.computed + other.computed, reused)

    @property
    def hit_rate(self) -> float:
        """Share of the demand that did not have to run."""
        return 1.0 - self.computed / self.demand if self.demand else 0.0


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """Keys and values in bytes: held now, evicted and spilled to disk since the engine was made."""

    held: int = 0
    evicted: int = 0
    spilled: int = 0


@dataclass(frozen=True, slots=True)
class PrefixReport:
    """What became of the prefixes whose keys and values were not simply computed.

    ``accepted`` and ``rejected`` count token-layers of reflected lanes: taken from the reflection, or computed although
    one was there. ``errors`` is measured where a lane ran both ways: by layer, the error of its reflected keys and
    values, relative to how far the perturbation moved them, and in ``drift`` how far that is, relative to their size. ``age`` counts the updates since the base lane's were
    computed (None: not used); ``carried`` is the error they had when they were computed again, in the same unit.
    """

    accepted: int = 0
    rejected: int = 0
    errors: tuple[float, ...] = ()
    drift: tuple[float, ...] = ()
    age: int | None = None
    carried: float | None = None

    @property
    def hit_rate(self) -> float | None:
        """Share of the reflections offered that were taken."""
        offered = self.accepted + self.rejected
        return self.accepted / offered if offered else None


@dataclass(frozen=True, slots=True)
class Scores:
    """What an engine returns: ``values[lane][request]``, the work it took, and what its cache holds after it."""

    values: Sequence[Sequence[Score]]
    work: Work
    cache: CacheStatistics = CacheStatistics()
    prefix: PrefixReport = PrefixReport()


@dataclass(frozen=True, slots=True)
class Prompt:
    """Ask for a continuation of ``tokens``; ``active_from`` is the activation point, as in a :class:`Request`.

    ``row`` and ``sample`` name the random numbers that it is sampled with: lanes share them, other prompts have others.
    """

    tokens: Tokens
    active_from: int = 0
    row: int = 0
    sample: int = 0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a continuation is chosen, token by token, and where it ends.

    A token is a pure function of (seed, row, sample, its position in the continuation, logits). ``temperature`` 0 is greedy: the
    likeliest token. Otherwise logits are divided by it; then the ``top_k`` likeliest (0: all) are kept, and of those the fewest whose
    probabilities add up to ``top_p``. A text ends after ``max_tokens``, with one of ``stop_tokens``, or where it holds one of ``stop``.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Continuation:
    """A continuation: all ``tokens`` that were chosen and the log-probability (nats, at temperature 1) of each.

    ``text`` goes up to what stopped it; ``stopped`` says whether anything but ``max_tokens`` did.
    """

    tokens: Tokens
    logprobs: Score
    text: str
    stopped: bool


@dataclass(frozen=True, slots=True)
class Continuations:
    """What an engine wrote: ``values[lane][prompt]``, the work it took, and what its cache holds after it."""

    values: Sequence[Sequence[Continuation]]
    work: Work
    cache: CacheStatistics = CacheStatistics()


@dataclass(frozen=True, slots=True)
class Estimate:
    """A zeroth-order gradient, ``sum_k gradients[k] * z(probes[k])`` over ``q`` probes.

    ``losses[k]`` holds (L+, L-) of probe ``k``, or (L+, L0) if one-sided; ``loss`` is their mean, an estimate of L(theta).
    ``preconditioned`` takes the gradients' place in the update, where an estimator knows the loss's curvature.
    A whole gradient has no probes, and ``losses`` is L(theta) twice.
    """

    probes: tuple[Probe, ...]
    eps: float
    losses: tuple[tuple[float, float], ...]
    gradients: tuple[float, ...]
    preconditioned: tuple[float, ...] = ()

    @property
    def loss(self) -> float:
        """Mean loss over both signs of all probes."""
        return sum(plus + minus for plus, minus in self.losses) / (2 * len(self.losses))


@dataclass(frozen=True, slots=True)
class Observation:
    """What a step measured of its own approximations; later steps are planned by it.

    ``approximate`` and ``exact`` are projected gradients of the same probes, by the policy and by exact lanes (empty
    unless both ran). ``norm`` is that of a whole gradient. ``ladder`` holds (eps, L+, L-) of the first probe at several eps, ``base`` the loss L0 of the base lane.
    """

    prefix: PrefixReport = PrefixReport()
    approximate: tuple[float, ...] = ()
    exact: tuple[float, ...] = ()
    ladder: tuple[tuple[float, float, float], ...] = ()
    base: float | None = None
    norm: float | None = None


@dataclass(frozen=True, slots=True)
class Lesson:
    """What steps learn of texts that were written for them: their tokens, prompt by prompt, and how much better each was than others of its prompt.

    ``advantages`` are in standard deviations of the rewards of one prompt's texts. ``reference`` has the log-probabilities of every
    text's tokens before training, where steps are held to them.
    """

    texts: tuple[Tokens, ...]
    advantages: tuple[float, ...]
    reference: tuple[tuple[float, ...], ...] = ()

    def part(self, number: int, parts: int) -> "Lesson":
        """One of equally long parts, from 0."""
        count = len(self.texts) // parts
        here = slice(number * count, (number + 1) * count)
        return Lesson(self.texts[here], self.advantages[here], self.reference[here])


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did: its estimate, the gradients after clipping, ``lr``, the work, what the cache holds, what it measured.

    ``space`` is the digest of the directions that were taken up before it, if any were, and ``lesson`` what it was made of, if texts
    were written for it. ``decay`` times lr is the share of the weights that it takes away. ``metrics`` are for people, and in no journal.
    """

    step: int
    estimate: Estimate
    clipped: tuple[float, ...]
    lr: float
    work: Work = Work()
    cache: CacheStatistics = CacheStatistics()
    observed: Observation = Observation()
    space: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    lesson: Lesson | None = None
    decay: float = 0.0

    @property
    def terms(self) -> tuple[Term, ...]:
        """The update ``theta = (1 - lr decay) theta - lr / q * sum_k clipped[k] * z_k`` as a list of terms."""
        q = len(self.clipped)
        return tuple(
            Term(probe.seed, -self.lr * g / q, probe.block, 1.0 if k else 1.0 - self.lr * self.decay)
            for k, (probe, g) in enumerate(zip(self.estimate.probes, self.clipped, strict=True))
        )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metric (larger is better) and loss (nats) over ``examples`` held-out rows; ``error`` is the metric's standard error.

    One row alone has none. ``metrics`` and ``samples``, lists of plain records by name, are for people, and in no journal.
    """

    metric_name: str
    metric: float
    loss: float
    examples: int
    error: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    samples: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
