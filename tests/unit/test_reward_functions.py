"""Reward functions in the forms that people have, and what becomes of bad ones."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rewarding import BATCH, NAN, compute_score, rewards, trl, trl_short

from twinpass.errors import RewardError
from twinpass.objective.reward_functions import RewardFunction, load_reward
from twinpass.objective.rewards import Completions, OnError, Rewards


async def trl_async(completions: list[str], completion_ids: list[list[int]], **kwargs: Any) -> list[int]:
    return [len(ids) for ids in completion_ids]


def compute_score_dict(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None
) -> dict[str, float]:
    return {"score": 2.0 * (ground_truth in solution_str), "acc": 1.0}


def reward_function(output: str, target: int, fast: bool = False) -> tuple[str, float]:
    return ("label", len(output) * float(target))


def rubric(prompt: str, completion: str, answer: str, state: dict[str, Any]) -> float:
    return float(completion == answer) + 10 * (prompt == "q")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (trl, [1, 0, NAN]),
        (trl_short, [4, 9, 4]),
        (trl_async, [1, 3, 1]),
        (compute_score, [0, 1, 1]),
        (compute_score_dict, [0, 2, 2]),
        (reward_function, [4, 18, 12]),
        (rubric, [1, 10, 1]),
    ],
)
def test_functions_of_every_form(function: Any, expected: list[float]) -> None:
    found = rewards(function)(BATCH)
    assert np.array_equal(found.total, expected, equal_nan=True)
    assert found.logged == ({"seen": 3.0} if function is trl else {})


def test_conversations_give_messages_and_texts_to_who_takes_texts() -> None:
    batch = Completions(
        (["m"],), ([{"role": "assistant", "content": "bad"}],), ((1,),), {"ground_truth": ["bad"]}, ("row 1",)
    )

    def content(completions: Any, **kwargs: Any) -> list[float]:
        return [len(messages[0]["content"]) for messages in completions]

    assert rewards(content)(batch).total == [3]
    assert rewards(compute_score)(batch).total == [1]


def test_weights_and_what_does_not_apply() -> None:
    found = rewards(trl, trl_short, weights=[10.0, 0.5])(BATCH)
    assert found.total.tolist() == [12.0, 4.5, 2.0]
    assert found.each["trl_short"].tolist() == [4, 9, 4]
    with pytest.raises(RewardError, match="1 weights for 2 rewards"):
        rewards(trl, trl_short, weights=[1.0])


@pytest.mark.parametrize("made", [list, np.array, torch.tensor, lambda values: map(np.float32, values)])
def test_nan_is_what_does_not_apply_as_in_trl(made: Any) -> None:
    """Its GRPO makes NaN of None, and leaves NaN out of every sum and mean, whoever made it."""

    def seldom(completions: list[str]) -> Any:
        return made([NAN if text == "fine" else 3.0 for text in completions])

    found = rewards(seldom, trl_short)(BATCH)
    assert found.total.tolist() == [7.0, 12.0, 4.0]
    assert np.isnan(found.each["seldom"]).tolist() == [False, False, True]
    assert not found.failed
    assert np.isnan(rewards(seldom)(BATCH).total).tolist() == [False, False, True]


def raises(completions: list[str], **kwargs: Any) -> list[float]:
    return [1.0 if text != "a bad one" else 1 / 0 for text in completions]


def infinite(completions: list[str], **kwargs: Any) -> list[float]:
    return [np.inf if text == "a bad one" else 1.0 for text in completions]


def word(completions: list[str], **kwargs: Any) -> list[Any]:
    return ["3" if text == "a bad one" else np.float32(1) for text in completions]


def long(completions: list[str], **kwargs: Any) -> list[Any]:
    return [10**400 if text == "a bad one" else 1 for text in completions]


def huge(completions: list[str], **kwargs: Any) -> list[Any]:
    return [-1e200 if text == "a bad one" else 1 for text in completions]


def unreal(completions: list[str], **kwargs: Any) -> list[Any]:
    return [np.complex64(1) if text == "a bad one" else 1 for text in completions]


def hangs(completions: list[str], **kwargs: Any) -> list[float]:
    if "a bad one" in completions:
        time.sleep(2)
    return [1.0] * len(completions)


BAD = [
    (raises, "raised ZeroDivisionError: division by zero"),
    (infinite, "returned inf; a finite number or None was expected"),
    (word, "returned '3'; a finite number or None was expected"),
    (long, "returned 10{39}; a number of at most 1e\\+100 was expected"),
    (huge, "returned -1e\\+200; a number of at most 1e\\+100 was expected"),
    (unreal, "returned .*1\\+0j.*; a finite number or None was expected"),
    (hangs, "did not return within 0.2 s"),
]


@pytest.mark.parametrize(("function", "message"), BAD)
def test_a_bad_reward_is_named_with_row_and_text(function: Any, message: str) -> None:
    with pytest.raises(
        RewardError,
        match=f"^reward '{function.__name__}' {message}; a.jsonl, row 2, text 'a bad one'(; task.reward_timeout .*)?$",
    ):
        rewards(function, timeout=0.2)(BATCH)


@pytest.mark.parametrize(("function", "message"), BAD)
def test_or_skipped_and_counted(function: Any, message: str) -> None:
    found = rewards(function, trl_short, timeout=0.2, on_error="skip")(BATCH)
    assert found.total.tolist() == [5, 9, 5]
    assert (found.failed, message != "") == ({function.__name__: 1}, True)


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_the_wrong_length_is_an_error(on_error: OnError) -> None:
    def wrong(completions: list[str], **kwargs: Any) -> list[float]:
        return [1.0] if len(completions) == 1 else [1.0, 2.0]

    with pytest.raises(RewardError, match="returned 2 values; a list of 3 was expected, one a completion"):
        rewards(wrong, on_error=on_error)(BATCH)


def test_functions_are_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def length(completions, **kwargs):\n    return [len(text) for text in completions]\n"
    )
    found = load_reward("mine.py:length", tmp_path)
    assert found.name == "length"
    assert Rewards([found])(BATCH).total.tolist() == [4, 9, 4]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("none.py:length", "there is no file .*none.py"),
        ("mine.py:width", "mine.py has no function 'width'; there are length, taker"),
        ("mine.py", "expected file.py:function, package.module:function, or"),
        ("mine.py:taker", r"takes \(a, b\): expected 'completions'"),
        ("broken.py:length", "broken.py cannot be imported: ZeroDivisionError"),
        ("no_such_package.rewards:length", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_functions_that_are_not_there(tmp_path: Path, spec: str, message: str) -> None:
    (tmp_path / "mine.py").write_text("def length(completions): ...\ndef taker(a, b): ...\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(RewardError, match=message):
        load_reward(spec, tmp_path)


def test_columns_that_rows_lack() -> None:
    with pytest.raises(RewardError, match="reward 'trl' asks for answer, and the rows have only question, text"):
        RewardFunction.of(trl).require(["question", "text"])
    RewardFunction.of(compute_score).require(["ground_truth"])
    with pytest.raises(RewardError, match="asks for ground_truth"):
        RewardFunction.of(compute_score).require([])
    RewardFunction.of(rubric).require(["answer"])
    with pytest.raises(RewardError, match="asks for answer"):
        RewardFunction.of(rubric).require([])


ELSEWHERE = """
import time

def quick(completions, log_metric, log_extra, **kwargs):
    log_metric("calls", 1)
    log_extra("length", [len(text) for text in completions])
    return [float(len(text)) for text in completions]

def bad(completions, **kwargs):
    raise KeyError(completions[0])

def slow(completions, **kwargs):
    time.sleep(60 * any("bad" in text for text in completions))
    return [0.0] * len(completions)
"""


@pytest.mark.full
def test_workers_answer_as_one_would(tmp_path: Path) -> None:
    """Parts of a batch run in other processes; what raises or hangs there is named, and ended."""
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    functions = [load_reward(f"elsewhere.py:{name}", tmp_path) for name in ("quick", "bad", "slow")]
    several = Rewards(functions, workers=2, timeout=4.0, on_error="skip")
    try:
        found = several(BATCH)
    finally:
        several.close()
    assert found.each["quick"].tolist() == [4, 9, 4]
    assert found.extra == {"length": [4, 9, 4]}
    assert np.isnan(found.each["bad"]).all()
    assert found.failed == {"bad": 3, "slow": 1}
    assert found.each["slow"][[0, 2]].tolist() == [0, 0]
    with pytest.raises(RewardError, match=r"reward 'low' cannot be sent to another process .* or set workers = 0"):
        Rewards([RewardFunction.of(lambda completions: 0, "low")], workers=1)
