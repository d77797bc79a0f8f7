"""Reward functions of the examples, in TRL's form: texts in, a number for each out."""

import re
from collections import Counter
from functools import cache
from itertools import pairwise
from typing import Any


def cheerful(completions: list[str], **kwargs: Any) -> list[float]:
    """VADER's compound score, from -1 (gloomy) to 1 (cheerful): pip install vaderSentiment."""
    return [float(_analyser().polarity_scores(text)["compound"]) for text in completions]


def varied(completions: list[str], **kwargs: Any) -> list[float]:
    """Minus the share of a text's pairs of words that it repeats, or that other texts of the batch have too.

    Without it, all texts soon become one.
    """
    texts = [pairs(text) for text in completions]
    known = Counter(pair for own in texts for pair in set(own))
    return [sum(known[pair] == 1 for pair in set(own)) / len(own) - 1 if own else 0.0 for own in texts]


def pairs(text: str) -> list[tuple[str, str]]:
    """Neighbouring words."""
    words = text.lower().split()
    return list(pairwise(words))


def correct(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    """1 where the last number of a text is the one behind GSM8K's ``####``, else 0."""
    return [float(_last(text) == _last(right)) for text, right in zip(completions, answer, strict=True)]


def _last(text: str) -> float | None:
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return float(found[-1].replace(",", "")) if found else None


@cache
def _analyser() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
