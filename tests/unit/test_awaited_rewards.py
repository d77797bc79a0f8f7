"""Reward functions that are coroutines, as judges that are asked over a network are."""

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from rewarding import BATCH, rewards

from twinpass.errors import RewardError
from twinpass.objective.rewards import Rewarded
from twinpass.objective.within import side_by_side

LENGTHS = [4, 9, 4]


def test_coroutines_share_an_event_loop() -> None:
    """A lock or a client that was made once is used by every call."""
    lock = asyncio.Lock()

    async def one(text: str) -> int:
        async with lock:
            await asyncio.sleep(0)
        return len(text)

    async def all_at_once(completions: list[str], **kwargs: Any) -> list[int]:
        return list(await asyncio.gather(*map(one, completions)))

    async def leaving(completions: list[str], **kwargs: Any) -> list[int]:
        sys.exit(3)

    async def in_thread(completions: list[str], **kwargs: Any) -> list[bool]:
        return [threading.current_thread().daemon] * len(completions)

    judge = rewards(all_at_once)
    assert judge(BATCH).total.tolist() == judge(BATCH).total.tolist() == LENGTHS
    assert rewards(in_thread)(BATCH).total.all()  # it ends with the process
    with pytest.raises(RewardError, match="SystemExit"):
        rewards(leaving)(BATCH)
    assert judge(BATCH).total.tolist() == LENGTHS


@pytest.mark.parametrize("main", [True, False])
def test_coroutines_wait_for_others_side_by_side(main: bool) -> None:
    """Each of two functions, and each text of a function that takes one, goes on when all of them have begun."""
    of_functions, of_texts = asyncio.Barrier(2), asyncio.Barrier(3)

    async def kind(completions: list[str], **kwargs: Any) -> list[int]:
        async with of_functions:
            return [len(text) for text in completions]

    async def true(completions: list[str], log_metric: Callable[..., None], **kwargs: Any) -> list[int]:
        async with of_functions:
            log_metric("seen", len(completions))
            return [10 * len(text) for text in completions]

    async def rubric(completion: str, answer: str) -> float:
        async with of_texts:
            return float(completion == answer)

    async def compute_score(solution_str: str, ground_truth: str) -> dict[str, float]:
        async with of_texts:
            return {"score": float(ground_truth in solution_str)}

    def judged() -> list[Rewarded]:
        return [rewards(*functions, timeout=20)(BATCH) for functions in ((kind, true), (rubric,), (compute_score,))]

    both, texts, scores = judged() if main else side_by_side([judged], "aside")[0]
    assert both.each["kind"].tolist() == LENGTHS
    assert both.each["true"].tolist() == [10 * each for each in LENGTHS]
    assert both.logged == {"seen": 3}
    assert texts.total.tolist() == [1, 0, 1]
    assert scores.total.tolist() == [0, 1, 1]


def test_of_coroutines_the_one_that_fails_is_named() -> None:
    async def good(completions: list[str], **kwargs: Any) -> list[int]:
        return [1] * len(completions)

    async def bad(completions: list[str], **kwargs: Any) -> list[int]:
        raise ValueError("no answer")

    with pytest.raises(RewardError, match="reward 'bad' raised ValueError: no answer"):
        rewards(good, bad)(BATCH)
    found = rewards(good, bad, on_error="skip")(BATCH)
    assert found.total.tolist() == [1, 1, 1]
    assert found.failed == {"bad": 3}
