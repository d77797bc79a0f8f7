"""A goal of what lanes write: minus the shaped mean reward of a lane's texts, all lanes in one batch."""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from twinpass.core import (
    BASE,
    Continuation,
    Continuations,
    Decode,
    Evaluation,
    Lane,
    Lesson,
    Probe,
    Prompt,
    Request,
    Sampling,
    Work,
)
from twinpass.engine.base import Engine
from twinpass.errors import ModelError, RewardError
from twinpass.objective.base import Objective
from twinpass.objective.calling import TrainerState
from twinpass.objective.goal import FEW, START, At, Goal, Measured, Progress, Taught, portions, silent
from twinpass.objective.policy_gradient import PolicyGradient
from twinpass.objective.rewards import Completions, Rewards, Shaping, Values, advantages_of, metrics, shaped
from twinpass.perturb.noise import derive_seed
from twinpass.reuse.plan import Spans
from twinpass.task.example import Asked, Example

COMPARED = 16
EXAMINED = 4
"""Texts of a prompt, where nothing else is said: to learn from how they differ, and to evaluate."""

GENERATED = 24
"""Prompts whose texts are written at once, if a step takes fewer: a batch of many costs less a text."""

EXTREMES = 3
"""Samples of an evaluation that are kept, of the best and of the worst."""

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """``losses`` by lane; ``rewards`` [lanes, prompts, samples], NaN where none applies; ``written`` likewise; what happened.

    ``fault``: what was wrong with the first reward that was skipped.
    """

    losses: tuple[float, ...]
    rewards: Values
    written: Continuations
    metrics: Mapping[str, float]
    extra: Mapping[str, Sequence[Any]]
    fault: str = ""

    @property
    def work(self) -> Work:
        """What writing took."""
        return self.written.work

    @property
    def texts(self) -> list[list[list[Continuation]]]:
        """By lane, prompt and sample."""
        samples = self.rewards.shape[2]
        return [
            [list(own[start : start + samples]) for start in range(0, len(own), samples)] for own in self.written.values
        ]

    def records(self, asked: Sequence[Asked], lane: int = 0) -> list[Record]:
        """A lane's samples that have a reward, as plain records, with what functions have logged beside them."""
        own, texts = self.rewards[lane], self.texts[lane]
        first = lane * own.size
        return [
            {
                "prompt": asked[p].shown,
                "completion": texts[p][s].text,
                "reward": float(own[p, s]),
                **{name: column[first + p * own.shape[1] + s] for name, column in self.extra.items()},
            }
            for p in range(own.shape[0])
            for s in range(own.shape[1])
            if np.isfinite(own[p, s])
        ]


def extremes(records: Sequence[Record], count: int = EXTREMES) -> dict[str, list[Record]]:
    """The best and the worst of some samples."""
    order = sorted(records, key=lambda record: -record["reward"])
    return {"best": order[:count], "worst": order[::-1][:count]}


@dataclass(frozen=True)
class Population(Goal):
    """Scores lanes by what they write.

    Args:
        samples: completions a prompt and lane; None: 1 where lanes are compared, :data:`COMPARED` where the completions of one prompt
            are, :data:`EXAMINED` of a held-out one; greedy ones are all the same.
        shaping: what a lane's mean is taken of (:func:`twinpass.objective.rewards.shaped`).
        steps_per_generation: steps along whole gradients that texts are written for at once; each learns from a part of them. None:
            as many as make :data:`GENERATED` prompts.
        beta: what nats a token away from the model as it was cost there, in standard deviations of rewards (0: nothing).
    """

    metric_name: ClassVar[str] = "reward"
    portion: ClassVar[int] = FEW
    absolute: ClassVar[bool] = False
    teaches: ClassVar[bool] = True

    rewards: Rewards
    sampling: Sampling
    decode: Decode
    samples: int | None = None
    shaping: Shaping = "raw"
    steps_per_generation: int | None = None
    beta: float = 0.0

    def steps_per_lesson(self, batch_size: int) -> int:
        return self.steps_per_generation or max(1, GENERATED // batch_size)

    def longest(self, batch_size: int) -> str:
        steps = self.steps_per_lesson(batch_size)
        count = steps * batch_size * self._samples(COMPARED)
        when = f"the first of every {steps} steps" if steps > 1 else "every step"
        return f"{when} writes {count:,} texts of up to {self.sampling.max_tokens} tokens"

    def __post_init__(self) -> None:
        if self.samples is not None and (self.samples < 1 or (self.samples > 1 and self.sampling.temperature == 0)):
            raise RewardError(
                f"samples is {self.samples}: greedy texts are all the same; set 1, or a temperature above 0"
            )

    def close(self) -> None:
        self.rewards.close()

    def require(self, examples: Sequence[Example]) -> None:
        columns = sorted(_columns(_asked(examples)))
        for function in self.rewards.functions:
            function.require(columns)

    def write(
        self,
        engine: Engine,
        examples: Sequence[Example],
        lanes: Sequence[Lane],
        at: At = START,
        samples: int = EXAMINED,
    ) -> Outcome:
        """Let every lane continue the prompts, and reward what it writes: ``samples`` texts of each, if the goal does not say how many.

        A row is known by its place in ``examples``; lanes share its random numbers.

        Raises:
            RewardError: a function cannot be called, before anything is written where its columns are missing.
            ModelError: a prompt does not fit.
        """
        asked, samples = _asked(examples), self._samples(samples)
        self.require(asked)
        prompts = [
            Prompt(one.prompt, one.suffix_start, row, sample)
            for row, one in enumerate(asked)
            for sample in range(samples)
        ]
        written = engine.generate(prompts, lanes, replace(self.sampling, seed=at.seed), self.decode)
        texts = [text for own in written.values for text in own]
        whose = [one for _ in lanes for one in asked for _ in range(samples)]
        rewarded = self.rewards(_batch(whose, texts, at))
        values = rewarded.total.reshape(len(lanes), len(asked), samples)
        losses = tuple(-float(value) for value in shaped(values, self.shaping))
        return Outcome(losses, values, written, metrics(rewarded, values, texts), rewarded.extra, rewarded.fault)

    def measure(
        self, engine: Engine, examples: Sequence[Example], lanes: Sequence[Lane], spans: Spans | None, at: At
    ) -> Measured:
        if spans is not None:
            raise ModelError("texts are written under exact lanes: use an exact policy")
        found = self.write(engine, examples, lanes, at, 1)
        return Measured(found.losses, found.work, found.written.cache, metrics=found.metrics)

    def teach(self, engine: Engine, examples: Sequence[Example], at: At) -> Taught:
        found = self.write(engine, examples, [BASE], at, COMPARED)
        advantages = tuple(advantages_of(found.rewards[0]).ravel().tolist())
        lesson = Lesson(tuple(text.tokens for text in found.written.values[0]), advantages)
        if not self.beta:
            return Taught(lesson, found.work, found.metrics)
        before = engine.reference(PolicyGradient(advantages).requests(self._written(examples, lesson)))
        known = tuple(tuple(score.tolist()) for score in before.values[0])
        return Taught(replace(lesson, reference=known), found.work + before.work, found.metrics)

    def learn(self, examples: Sequence[Example], lesson: Lesson | None) -> tuple[Objective, Sequence[Example]]:
        assert lesson is not None
        return PolicyGradient(lesson.advantages, lesson.reference, self.beta), self._written(examples, lesson)

    def _written(self, examples: Sequence[Example], lesson: Lesson) -> list[Example]:
        """Texts that were written, as answers to their prompts."""
        whose = [one for one in examples for _ in range(self._samples(COMPARED))]
        return [
            Example(one.prompt, (text,), 0, one.suffix_start, one.place)
            for one, text in zip(whose, lesson.texts, strict=True)
        ]

    def largest(self, examples: Sequence[Example]) -> list[Request]:
        text = (0,) * self.sampling.max_tokens
        return [Request(one.prompt, text, one.suffix_start) for one in examples for _ in range(self._samples(COMPARED))]

    def _samples(self, otherwise: int) -> int:
        return (1 if self.sampling.temperature == 0 else otherwise) if self.samples is None else self.samples

    def evaluate(
        self, engine: Engine, examples: Sequence[Example], progress: Progress = silent, at: At = START
    ) -> Evaluation:
        each: list[float] = []
        told: list[tuple[int, Mapping[str, float]]] = []
        records: list[Record] = []
        fault = ""
        for number, part in enumerate(portions(examples, self.portion)):
            found = self.write(engine, part, [BASE], replace(at, seed=derive_seed(at.seed, "block", number)))
            each += [float(np.nanmean(own)) for own in found.rewards[0] if np.isfinite(own).any()]
            own = found.rewards[np.isfinite(found.rewards)]
            passes = {"pass_rate": float(np.mean(own > 0))} if own.size else {}
            told.append((len(part), {**found.metrics, **passes}))
            records += found.records(_asked(part))
            fault = fault or found.fault
            progress(sum(rows for rows, _ in told))
        if not each:
            why = f" (the first that was skipped: {fault})" if fault else ""
            raise RewardError(
                f"no reward applies to any of the held-out texts{why}; look at the functions, or at the rows"
            )
        metric = float(np.mean(each))
        error = float(np.std(each, ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else None
        return Evaluation(self.metric_name, metric, -metric, len(examples), error, _together(told), extremes(records))

    def warm(
        self, engine: Engine, examples: Sequence[Example], probes: Sequence[Probe], since: Set[int | None]
    ) -> None:
        engine.warm_prompts([Prompt(one.prompt, one.suffix_start) for one in examples], since)


def _asked(examples: Sequence[Example]) -> list[Asked]:
    found = [one for one in examples if isinstance(one, Asked)]
    if len(found) < len(examples):
        raise RewardError(
            "rewards are of texts that continue prompts, and these rows have answers; use a task of kind 'reward'"
        )
    return found


def _columns(asked: Sequence[Asked]) -> set[str]:
    """Columns that all rows have."""
    return set.intersection(*(set(one.columns) for one in asked)) if asked else set()


def _batch(whose: Sequence[Asked], texts: Sequence[Continuation], at: At) -> Completions:
    return Completions(
        [one.shown for one in whose],
        [
            text.text if isinstance(one.shown, str) else [{"role": "assistant", "content": text.text}]
            for one, text in zip(whose, texts, strict=True)
        ],
        [text.tokens for text in texts],
        {name: [one.columns[name] for one in whose] for name in sorted(_columns(whose))},
        [one.place for one in whose],
        TrainerState(at.step, at.steps),
    )


def _together(told: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Metrics of blocks as one: their means, weighted by rows; counts of errors add up."""
    found = {}
    for name in dict.fromkeys(name for _, known in told for name in known):
        parts = [(rows, known[name]) for rows, known in told if math.isfinite(known.get(name, math.nan))]
        if name.startswith("reward_errors/"):
            found[name] = sum(value for _, value in parts)
        elif parts:
            found[name] = sum(rows * value for rows, value in parts) / sum(rows for rows, _ in parts)
    return found
