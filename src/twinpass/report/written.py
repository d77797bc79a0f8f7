"""What written texts are worth beside the right ones, and to reward functions: measures with an interval."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np

from twinpass.report.measures import F64, with_interval, within_bounds

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_UNBOUNDED = "/mean"
"""How the names of measures end that are not between 0 and 1."""
_ROUGE = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class WrittenTexts:
    """Texts beside the ``right`` ones of their rows, and what functions make of them, by name; NaN where one does not apply."""

    texts: Sequence[str]
    right: Sequence[str]
    rewards: Mapping[str, F64] = field(default_factory=dict)

    def each(self) -> Mapping[str, F64]:
        """Every measure of every row."""
        pairs = list(zip(self.texts, self.right, strict=True))
        found = {
            "exact_match": np.array([float(normalised(text) == normalised(right)) for text, right in pairs]),
            "token_f1": np.array([token_f1(text, right) for text, right in pairs]),
        }
        if find_spec("rouge_score") is not None:
            found |= _rouge(pairs)
        for name, values in self.rewards.items():
            found |= {f"rewards/{name}/mean": values, f"rewards/{name}/pass_rate": passed(values)}
        return found

    def measures(self) -> dict[str, Any]:
        """Their means over the rows that they apply to, with 95% intervals."""
        known = {name: values[np.isfinite(values)] for name, values in self.each().items()}
        return {name: _mean(name, values) for name, values in known.items() if len(values)}


def _mean(name: str, values: F64) -> Mapping[str, float]:
    interval = with_interval if name.endswith(_UNBOUNDED) else within_bounds
    return interval(len(values), lambda rows: float(values[rows].mean()))


def passed(rewards: F64) -> F64:
    """Whether each text passes: its reward is above 0; NaN where there is none."""
    return np.where(np.isfinite(rewards), (rewards > 0).astype(np.float64), np.nan)


def normalised(text: str) -> str:
    """A text as SQuAD compares it: in small letters, without punctuation, articles and more than one space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(text: str, right: str) -> float:
    """SQuAD's F1 (Rajpurkar et al. 2016): the harmonic mean of precision and recall of the words of two texts."""
    own, others = normalised(text).split(), normalised(right).split()
    if not own or not others:
        return float(own == others)
    same = sum((Counter(own) & Counter(others)).values())
    return 2 * same / (len(own) + len(others))


def _rouge(pairs: Sequence[tuple[str, str]]) -> dict[str, F64]:
    """ROUGE's F-measures (Lin 2004), by the package rouge-score, with stems."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(_ROUGE), use_stemmer=True)
    scores = [scorer.score(right, text) for text, right in pairs]
    return {name: np.array([float(score[name].fmeasure) for score in scores]) for name in _ROUGE}
