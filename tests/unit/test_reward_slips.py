"""Functions that take too long, take completions for something else or change what they are given, and what is said of them."""

import time
from typing import Any

import pytest
from rewarding import BATCH, rewards

from twinpass.errors import RewardError
from twinpass.objective.rewards import Completions

PROMPTS = [[{"role": "user", "content": name}] for name in ("p", "q")]
COMPLETIONS = [[{"role": "assistant", "content": text}] for text in ("<think>a</think>b", "c")]


def test_an_empty_completion_of_another_form_than_was_thought() -> None:
    def content(completions: Any, **kwargs: Any) -> list[int]:
        return [len(own[0]["content"]) for own in completions]

    empty = Completions(("p",), ("",), ((1,),), {}, ("row 1",))
    with pytest.raises(RewardError, match=r"raised IndexError: .*; completions are texts here, as prompts are$"):
        rewards(content)(empty)


def test_an_attribute_that_trainer_state_lacks_is_no_fault_of_completions() -> None:
    def paced(completions: Any, trainer_state: Any, **kwargs: Any) -> list[float]:
        return [trainer_state.epoch for _ in completions]

    with pytest.raises(RewardError, match=r"no 'epoch'; go by global_step / max_steps; .*, text 'good'$"):
        rewards(paced)(BATCH)


def test_rows_stay_as_they_are_whatever_functions_do_with_them() -> None:
    """A row is asked about in every evaluation."""
    answers = [["b"], ["c"]]
    seen = []

    def takes_out(completions: Any, solution: list[list[str]], **kwargs: Any) -> list[float]:
        completions[0][0]["content"] = completions[0][0].pop("content").upper()
        return [float(bool(right.pop())) for right in solution]

    def looks(completions: Any, solution: list[list[str]], **kwargs: Any) -> list[float]:
        seen.append((completions[0][0]["content"], solution))
        return [1.0, 1.0]

    batch = Completions(PROMPTS, COMPLETIONS, ((1, 2, 3), (4,)), {"solution": answers}, "ab")
    for _ in range(2):
        assert rewards(takes_out, looks)(batch).total.tolist() == [2, 2]
    assert answers == [["b"], ["c"]]
    assert seen[0] == ("<think>a</think>b", answers)


def test_a_batch_that_takes_too_long_is_not_asked_for_text_by_text_for_ever() -> None:
    calls = []

    def slow(completions: list[str], **kwargs: Any) -> list[float]:
        calls.append(len(completions))
        time.sleep(0.15 * len(completions))
        return [1.0] * len(completions)

    many = Completions(["p"] * 40, ["t"] * 40, [(1,)] * 40, {}, [f"row {i}" for i in range(40)])
    message = "did not return within 0.2 s; row 0, text 't', and 39 more; task.reward_timeout gives a call more time"
    with pytest.raises(RewardError, match=message):
        rewards(slow, timeout=0.2)(many)
    assert calls[0] == 40
    assert len(calls) < 10


def test_where_all_are_skipped_the_first_fault_is_told() -> None:
    def bad(completions: list[str], **kwargs: Any) -> list[float]:
        raise ValueError("mine")

    found = rewards(bad, on_error="skip")(BATCH)
    assert found.fault == "reward 'bad' raised ValueError: mine; a.jsonl, row 1, text 'good'"
