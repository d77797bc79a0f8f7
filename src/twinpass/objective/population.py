"""The loss of each lane of a population: minus the shaped mean reward of what it writes, all lanes in one batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from twinpass.core import Decode, Lane, Prompt, Sampling, Text, Tokens, Work
from twinpass.engine.base import Engine
from twinpass.errors import RewardError
from twinpass.objective.rewards import Batch, Rewards, Shaping, Values, metrics, shaped


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt to be continued: its tokens and activation point, what a reward is ``shown`` of it (a text, or messages), and columns."""

    tokens: Tokens
    shown: Any
    active_from: int = 0
    columns: Mapping[str, Any] = field(default_factory=dict)
    place: str = "a prompt"


@dataclass(frozen=True, slots=True)
class Outcome:
    """``losses`` by lane; ``rewards`` [lanes, prompts, samples], NaN where none applies; ``texts`` likewise; what happened; the work."""

    losses: tuple[float, ...]
    rewards: Values
    texts: Sequence[Sequence[Sequence[Text]]]
    metrics: Mapping[str, float]
    work: Work

    def extremes(self, asked: Sequence[Asked], lane: int = 0, count: int = 3) -> dict[str, list[dict[str, Any]]]:
        """The best and the worst samples of a lane, as plain records."""
        own, texts = self.rewards[lane], self.texts[lane]
        places = [(p, s) for p in range(own.shape[0]) for s in range(own.shape[1]) if np.isfinite(own[p, s])]
        order = sorted(places, key=lambda place: -float(own[place]))

        def record(p: int, s: int) -> dict[str, Any]:
            return {"prompt": asked[p].shown, "completion": texts[p][s].text, "reward": float(own[p, s])}

        return {
            "best": [record(*place) for place in order[:count]],
            "worst": [record(*place) for place in order[::-1][:count]],
        }


@dataclass(frozen=True)
class Population:
    """Scores lanes by what they write.

    Args:
        samples: completions a prompt and lane; greedy ones are all the same.
        shaping: what a lane's mean is taken of (:func:`twinpass.objective.rewards.shaped`).
    """

    rewards: Rewards
    sampling: Sampling
    decode: Decode
    samples: int = 1
    shaping: Shaping = "raw"

    def __post_init__(self) -> None:
        if self.samples < 1 or (self.samples > 1 and self.sampling.temperature == 0):
            raise RewardError(
                f"samples is {self.samples}: greedy texts are all the same; set 1, or a temperature above 0"
            )

    def measure(self, engine: Engine, asked: Sequence[Asked], lanes: Sequence[Lane], seed: int) -> Outcome:
        """Let every lane write, with the random numbers of ``seed``, and reward it.

        A row is known by its place in ``asked``; lanes share its random numbers.

        Raises:
            RewardError: a function cannot be called, before anything is written where its columns are missing.
            ModelError: a prompt does not fit.
        """
        columns = set.intersection(*(set(one.columns) for one in asked)) if asked else set()
        for function in self.rewards.functions:
            function.require(sorted(columns))
        prompts = [
            Prompt(one.tokens, one.active_from, row, sample)
            for row, one in enumerate(asked)
            for sample in range(self.samples)
        ]
        written = engine.generate(prompts, lanes, replace(self.sampling, seed=seed), self.decode)
        texts = [text for own in written.values for text in own]
        whose = [one for _ in lanes for one in asked for _ in range(self.samples)]
        rewarded = self.rewards(_batch(whose, texts, sorted(columns)))
        values = rewarded.total.reshape(len(lanes), len(asked), self.samples)
        losses = tuple(-float(value) for value in shaped(values, self.shaping))
        by_prompt = [
            [own[start : start + self.samples] for start in range(0, len(own), self.samples)] for own in written.values
        ]
        return Outcome(losses, values, by_prompt, metrics(rewarded, values, texts), written.work)


def _batch(whose: Sequence[Asked], texts: Sequence[Text], columns: Sequence[str]) -> Batch:
    return Batch(
        [one.shown for one in whose],
        [
            text.text if isinstance(one.shown, str) else [{"role": "assistant", "content": text.text}]
            for one, text in zip(whose, texts, strict=True)
        ],
        [text.tokens for text in texts],
        {name: [one.columns[name] for one in whose] for name in columns if name != "prompt"},
        [one.place for one in whose],
    )
