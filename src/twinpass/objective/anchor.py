"""Held to the model as it was: texts that it wrote before training cost what nats they lose.

The divergence KL(base || model) of a token is estimated by ``exp(r) - r - 1`` with r = log p - log p_base, on tokens that the base
model sampled (Schulman's k3). It is never below 0, and its slope is 0 where nothing moved, so that it adds no noise to a first step.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from twinpass.core import BASE, Prompt, Request, Sampling, Score
from twinpass.engine.base import Engine
from twinpass.errors import ModelError
from twinpass.task.example import Anchor, Example

TEXTS = 64
"""Texts that are written, at the most, spread over the rows."""

TOKENS = 16
"""Tokens of each, at the most."""

EVERY = 16
"""One row in so many has a text, however many there are; of few rows more have one."""

FAR = 5.0
"""Nats: a token that gained more has a slope of exp(5)."""


def anchored(
    engine: Engine, examples: Sequence[Example], seed: int, stop_tokens: tuple[int, ...] = ()
) -> list[Example]:
    """The examples, one in :data:`EVERY` with what an engine at theta_0 writes after a prompt of theirs.

    Raises:
        ModelError: it writes none, or no prompt leaves room in its window.
    """
    room = math.inf if engine.window is None else engine.window - TOKENS + 1
    fit = [example for example in examples if len(example.prompt) <= room]
    if not fit:
        raise ModelError(
            f"objective.regularise: no prompt leaves {TOKENS} of the {engine.window} tokens of the model's window to write in; leave it out"
        )
    every = max(1, min(EVERY, len(examples) // EVERY))
    count = -(-len(examples) // every)
    chosen = [fit[i] for i in np.linspace(0, len(fit) - 1, min(TEXTS, count, len(fit))).round().astype(int)]
    prompts = [Prompt(one.prompt, one.suffix_start, row) for row, one in enumerate(chosen)]
    sampling = Sampling(TOKENS, temperature=1.0, stop_tokens=stop_tokens, seed=seed)
    written = engine.generate(prompts, [BASE], sampling, str).values[0]
    texts = [
        Anchor(one.prompt, one.suffix_start, text.tokens, tuple(text.logprobs.tolist()))
        for one, text in zip(chosen, written, strict=True)
    ]
    found = list(examples)
    for turn, i in enumerate(range(0, len(found), every)):
        found[i] = replace(found[i], anchor=texts[turn % len(texts)])
    return found


def requests(examples: Sequence[Example]) -> list[Request]:
    """Those of the examples' texts, which follow the requests for answers."""
    return [
        Request(example.anchor.prompt, example.anchor.tokens, example.anchor.suffix_start)
        for example in examples
        if example.anchor is not None
    ]


def parted(examples: Sequence[Example], scores: Sequence[Score]) -> tuple[Sequence[Score], Sequence[Score]]:
    """Scores of answers, and of the examples' texts."""
    count = len(scores) - sum(example.anchor is not None for example in examples)
    return scores[:count], scores[count:]


def loss(examples: Sequence[Example], scores: Sequence[Score]) -> float:
    """The mean divergence of a token (nats), 0 where there are no texts; ``scores`` are those of texts alone."""
    total, tokens = _gained(examples, scores)
    return float((np.expm1(total) - total).sum() / max(1, tokens))


def gradient(examples: Sequence[Example], scores: Sequence[Score]) -> list[Score]:
    """Its derivative by every score."""
    total, tokens = _gained(examples, scores)
    return _split(np.expm1(total) / max(1, tokens), scores)


def curvature(
    examples: Sequence[Example], scores: Sequence[Score], tangents: Sequence[Sequence[Score]]
) -> NDArray[np.float64]:
    """``t_k^T C t_l`` [q, q]; C is its second derivative."""
    total, tokens = _gained(examples, scores)
    if not tokens:
        return np.zeros((len(tangents), len(tangents)))
    j = np.array([np.concatenate(own) for own in tangents])
    return np.asarray((j * (np.exp(total) / tokens)) @ j.T)


def _gained(examples: Sequence[Example], scores: Sequence[Score]) -> tuple[Score, int]:
    """Nats that every token of all texts gained, and how many there are."""
    known = [np.asarray(example.anchor.logprobs) for example in examples if example.anchor is not None]
    if not known:
        return np.zeros(0), 0
    gained = np.minimum(np.concatenate(list(scores)) - np.concatenate(known), FAR)
    return gained, len(gained)


def _split(values: Score, scores: Sequence[Score]) -> list[Score]:
    return np.split(values, np.cumsum([len(score) for score in scores])[:-1]) if len(scores) else []
