"""Reward functions and texts that they judge."""

import math
from typing import Any

from twinpass.objective.reward_functions import RewardFunction
from twinpass.objective.rewards import Completions, Rewards

NAN = math.nan
TEXTS = ("good", "a bad one", "fine")
BATCH = Completions(
    ("p", "q", "p"),
    TEXTS,
    ((1,), (2, 3, 4), (5,)),
    {"answer": ["good", "good", "fine"], "ground_truth": ["x", "bad", "fine"], "target": [1, 2, 3]},
    ("a.jsonl, row 1", "a.jsonl, row 2", "a.jsonl, row 3"),
)


def rewards(*functions: Any, **options: Any) -> Rewards:
    return Rewards([RewardFunction.of(function) for function in functions], **options)


def trl(prompts: Any, completions: Any, answer: Any, **kwargs: Any) -> list[float | None]:
    assert list(prompts) == ["p", "q", "p"]
    assert kwargs.keys() == {"completion_ids", "trainer_state", "log_extra", "log_metric", "ground_truth", "target"}
    kwargs["log_metric"]("seen", len(completions))
    return [None if text == "fine" else float(text == right) for text, right in zip(completions, answer, strict=True)]


def trl_short(completions: list[str]) -> list[float]:
    return [len(text) for text in completions]


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> float:
    return float(ground_truth in solution_str)
