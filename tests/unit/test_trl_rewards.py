"""Functions as people have them for TRL's trainers run as they are, or are refused with what to do."""

import asyncio
import functools
import pickle
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from rewarding import BATCH, rewards

from twinpass.errors import RewardError
from twinpass.objective.awaiting import awaited
from twinpass.objective.calling import TrainerState
from twinpass.objective.reward_functions import RewardFunction, load_reward
from twinpass.objective.rewards import Completions, Rewarded, Rewards

LENGTHS = [4, 9, 4]
MESSAGES = Completions(
    [[{"role": "user", "content": name}] for name in ("p", "q")],
    [[{"role": "assistant", "content": text}] for text in ("<think>a</think>b", "c")],
    ((1, 2, 3), (4,)),
    {"solution": ["b", "c"]},
    ("row 1", "row 2"),
    TrainerState(3, 12),
)


def lengths(completions: list[str], **kwargs: Any) -> list[int]:
    return [len(text) for text in completions]


def tensor(completions: list[str], **kwargs: Any) -> Any:
    return torch.tensor([float(len(text)) for text in completions], requires_grad=True)


def scalars(completions: list[str], **kwargs: Any) -> Any:
    return [torch.tensor(len(text), dtype=torch.bfloat16) for text in completions]


def generator(completions: list[str], **kwargs: Any) -> Iterator[int]:
    return (len(text) for text in completions)


def ids_only(completion_ids: list[list[int]]) -> list[int]:
    return [{1: 4, 3: 9}[len(ids)] for ids in completion_ids]


def output(completion_ids: list[list[int]], output: list[int], **kwargs: Any) -> list[int]:
    return output


def logits(completions: list[str], **kwargs: Any) -> Any:
    return tensor(completions)[:, None]


def single(completions: list[str], **kwargs: Any) -> Any:
    return list(logits(completions))


class Lengths:
    def __call__(self, completions: list[str], **kwargs: Any) -> list[int]:
        return lengths(completions)


@pytest.mark.parametrize("function", [tensor, scalars, logits, single, generator, ids_only, output, Lengths()])
def test_what_functions_take_and_return(function: Callable[..., Any]) -> None:
    batch = Completions(
        BATCH.prompts,
        BATCH.completions,
        BATCH.completion_ids,
        {"output": LENGTHS, "log_metric": [1, 2, 3]},
        BATCH.places,
    )
    assert rewards(function)(batch).total.tolist() == LENGTHS


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        ({"a": 1.0}, "{'a': 1.0}; a list of 1"),
        (torch.tensor(1.0), "1.0; a list of 1"),
        (torch.ones(4), "4 values"),
        (torch.ones(1, 2), r"\[1.0, 1.0\]; a finite number"),
        ([torch.ones(2)], r"tensor\(\[1., 1.\]\); a finite number"),
        (None, "None"),
    ],
)
def test_what_is_no_list_of_numbers(returned: Any, got: str) -> None:
    with pytest.raises(RewardError, match=f"returned {got}"):
        rewards(functools.partial(_returns, returned=returned))(BATCH.part(slice(0, 1)))


def _returns(completions: list[str], returned: Any) -> Any:
    return returned


def test_partials_go_by_the_names_of_their_functions() -> None:
    scaled = functools.partial(_scaled, scale=2.0)
    assert rewards(scaled)(BATCH).each["_scaled"].tolist() == [8, 18, 8]
    assert "scale * len(text)" in RewardFunction.of(scaled).code
    named = functools.update_wrapper(functools.partial(_scaled, scale=0.5), _scaled)
    judged = RewardFunction.of(named)
    judged.require([])
    assert Rewards([judged])(BATCH).total.tolist() == [2, 4.5, 2]
    with pytest.raises(RewardError, match=r"two rewards are called '_scaled', .* set its __name__"):
        rewards(scaled, functools.partial(_scaled, scale=3.0))
    triple: Any = functools.partial(_scaled, scale=3.0)
    triple.__name__ = "triple"
    assert set(rewards(scaled, triple)(BATCH).each) == {"_scaled", "triple"}


def _scaled(completions: list[str], scale: float, **kwargs: Any) -> list[float]:
    return [scale * len(text) for text in completions]


def test_what_has_no_text_goes_by_its_name() -> None:
    assert RewardFunction.of(Lengths(), "lengths").code == "lengths"


def test_messages_trainer_state_and_what_is_logged() -> None:
    def curriculum(
        prompts: Any, completions: Any, solution: Any, trainer_state: Any, log_extra: Any = None, log_metric: Any = None
    ) -> list[float | None]:
        prompts[0].append(completions[0][0])  # theirs to change
        log_extra(column="right", values=list(solution))
        log_metric(name="done", value=torch.tensor(0.5))
        assert trainer_state.is_world_process_zero
        assert getattr(trainer_state, "epoch", None) is None
        done = trainer_state.global_step / trainer_state.max_steps
        return [
            done if own[0]["content"].endswith(right) else None
            for own, right in zip(completions, solution, strict=True)
        ]

    found = rewards(curriculum)(MESSAGES)
    assert found.total.tolist() == [0.25, 0.25]
    assert (found.extra, found.logged) == ({"right": ["b", "c"]}, {"done": 0.5})
    assert [len(own) for own in MESSAGES.prompts] == [1, 1]
    assert pickle.loads(pickle.dumps(MESSAGES.state)) == MESSAGES.state
    with pytest.raises(
        AttributeError, match=r"global_step, max_steps, .* and no 'epoch'; go by global_step / max_steps"
    ):
        _ = MESSAGES.state.epoch


@pytest.mark.parametrize(("batch", "form"), [(BATCH, "texts"), (MESSAGES, "lists of messages")])
def test_completions_of_another_form_than_was_thought(batch: Completions, form: str) -> None:
    def content(completions: Any, **kwargs: Any) -> list[int]:
        return [len(own[0]["content"]) for own in completions]

    def lower(completions: Any, **kwargs: Any) -> list[int]:
        return [len(own.lower()) for own in completions]

    with pytest.raises(RewardError, match=f"raised .*; completions are {form} here, as prompts are$"):
        rewards(content if form == "texts" else lower)(batch)


def _timed(work: Callable[[], float], seconds: int) -> float:
    """With a timer as math-verify's: errors count as wrong."""

    def ring(*_: Any) -> None:
        raise TimeoutError

    try:
        before = signal.signal(signal.SIGALRM, ring)
        signal.alarm(seconds)
        try:
            return work()
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
    except Exception:
        return 0.0


def test_functions_are_called_in_the_main_thread() -> None:
    """Where timers by signals work, and what a file made when it was imported may be used."""
    known = sqlite3.connect(":memory:")
    known.execute("create table seen (text)")

    def function(completions: list[str], **kwargs: Any) -> list[float]:
        known.executemany("insert into seen values (?)", [(text,) for text in completions])
        return [_timed(lambda: 1.0, 5) for _ in completions]

    before = signal.getsignal(signal.SIGALRM)
    assert rewards(function)(BATCH).total.tolist() == [1, 1, 1]
    assert known.execute("select count(*) from seen").fetchone() == (3,)
    known.close()
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def _stuck(completions: list[str], **kwargs: Any) -> list[float]:
    try:
        threading.Event().wait(30)
    except:  # noqa: E722
        return [0.0] * len(completions)
    return [1.0] * len(completions)


async def _asleep(completions: list[str], **kwargs: Any) -> list[float]:
    await asyncio.sleep(30)
    return [1.0] * len(completions)


@pytest.mark.parametrize("function", [_stuck, _asleep])
@pytest.mark.parametrize("main", [True, False])
def test_one_that_hangs_is_broken_off(function: Any, main: bool) -> None:
    found: list[Rewarded] = []

    def judge() -> None:
        found.append(rewards(function, timeout=0.05, on_error="skip")(BATCH.part(slice(0, 1))))

    if main:
        judge()
    else:
        thread = threading.Thread(target=judge)
        thread.start()
        thread.join()
    assert found[0].failed == {function.__name__: 1}


def test_a_coroutine_that_is_broken_off_is_cancelled() -> None:
    cancelled = threading.Event()

    async def waiting(completions: list[str], **kwargs: Any) -> list[float]:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return [1.0] * len(completions)

    assert rewards(waiting, timeout=0.05, on_error="skip")(BATCH.part(slice(0, 1))).failed == {"waiting": 1}
    assert cancelled.wait(20)


def test_coroutines_beside_one_that_raises_are_cancelled() -> None:
    cancelled = threading.Event()

    async def waiting() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def raising() -> None:
        raise ValueError("no answer")

    with pytest.raises(ValueError, match="no answer"):
        awaited([waiting(), raising()])
    assert cancelled.wait(20)


def test_an_interrupt_ends_the_run() -> None:
    def interrupted(completions: list[str], **kwargs: Any) -> list[float]:
        signal.raise_signal(signal.SIGINT)
        return [0.0] * len(completions)

    with pytest.raises(KeyboardInterrupt):
        rewards(interrupted, on_error="skip")(BATCH)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("trl.rewards.accuracy_reward", "did you mean 'trl.rewards:accuracy_reward'?"),
        ("accuracy_reward", "perhaps 'trl.rewards:accuracy_reward'"),
        ("reward-model", "or a reward model's folder or name on the hub$"),
        ("rewards.py", "expected file.py:function, package.module:function, or"),
    ],
)
def test_names_as_trl_has_them(spec: str, message: str) -> None:
    with pytest.raises(RewardError, match=message.replace("?", r"\?")):
        load_reward(spec)


def test_what_is_no_function() -> None:
    def make(max_len: int = 3) -> Callable[..., Any]:
        return lengths

    with pytest.raises(RewardError, match=r"'make' takes \(max_len\): .* has to be called"):
        RewardFunction.of(make)

    def played(environments: Any, **kwargs: Any) -> list[float]:
        return []

    with pytest.raises(RewardError, match="asks for environments, and texts are written at once here"):
        RewardFunction.of(played).require(["answer"])
