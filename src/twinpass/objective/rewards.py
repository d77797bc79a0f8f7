"""Rewards of texts: functions called with care, their values checked, weighed and shaped into one loss a lane."""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from twinpass.core import Continuation
from twinpass.errors import RewardError
from twinpass.objective.calling import CallError, Returned, SlowCallError, TrainerState, Workers, call_here
from twinpass.objective.reward_functions import RewardFunction, require_distinct, text_of
from twinpass.objective.within import side_by_side

Values = NDArray[np.float64]
Shaping = Literal["raw", "zscore", "rank", "prompt"]
OnError = Literal["stop", "skip"]
LARGEST = 1e100
"""Of a reward: squares of larger ones are no numbers any more."""

Found = tuple[list[float | None], Returned]
"""Rewards of some completions, and the answer that they came in."""

SHOWN = 60
"""Characters of a text in a message."""


@dataclass(frozen=True, slots=True)
class Completions:
    """Completions to be rewarded: of each its prompt, tokens, the other columns of its row, and ``places`` for messages."""

    prompts: Sequence[Any]
    completions: Sequence[Any]
    completion_ids: Sequence[Sequence[int]]
    columns: Mapping[str, Sequence[Any]]
    places: Sequence[str]
    state: TrainerState = field(default_factory=TrainerState)

    def __len__(self) -> int:
        return len(self.completions)

    def part(self, here: slice) -> "Completions":
        """Some of the completions."""
        columns = {name: values[here] for name, values in self.columns.items()}
        return Completions(
            self.prompts[here],
            self.completions[here],
            self.completion_ids[here],
            columns,
            self.places[here],
            self.state,
        )

    @property
    def given(self) -> dict[str, Any]:
        """What a function is called with, to do with as it likes: rows are asked about again and again."""
        return {
            **{name: _own(list(values)) for name, values in self.columns.items()},
            "prompts": _own(list(self.prompts)),
            "completions": _own(list(self.completions)),
            "completion_ids": [list(ids) for ids in self.completion_ids],
            "trainer_state": self.state,
        }


def _own(value: Any) -> Any:
    """A copy, of lists and dictionaries."""
    if isinstance(value, dict):
        return {key: _own(each) for key, each in value.items()}
    return [_own(each) for each in value] if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class Rewarded:
    """``total`` [n], NaN where no function applies; ``each`` function's values by name, NaN likewise; ``failed`` calls by name.

    ``logged`` are metrics, and ``extra`` columns of n values, that functions have logged. ``fault``: what was wrong with the first failed call.
    """

    total: Values
    each: Mapping[str, Values]
    failed: Mapping[str, int]
    logged: Mapping[str, float]
    extra: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    fault: str = ""


@dataclass(frozen=True)
class Rewards:
    """Some functions, and what each counts.

    Args:
        weights: one a function; 1 each, if there are none.
        timeout: seconds that a call may take; one that hangs is broken off, or left behind (:func:`twinpass.objective.within.within`).
        on_error: a reward that raises, hangs or is no number ends the run ("stop"), or its text counts as one that the function does
            not apply to ("skip").
        workers: so many processes that functions are called in, each with a part of the batch; one that hangs is ended.

    Raises:
        RewardError: there is no function, two have one name, weights are of another number, or one cannot be sent to workers.
    """

    functions: Sequence[RewardFunction]
    weights: Sequence[float] = ()
    timeout: float = 60.0
    on_error: OnError = "stop"
    workers: int = 0
    _pool: list[Workers] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.functions:
            raise RewardError("there is no reward function; name at least one")
        if self.weights and len(self.weights) != len(self.functions):
            raise RewardError(f"{len(self.weights)} weights for {len(self.functions)} rewards; give one for each")
        require_distinct(self.functions)
        if self.workers:
            self._pool.append(Workers(self.functions, self.workers))

    def __call__(self, batch: Completions) -> Rewarded:
        """The rewards of a batch.

        Raises:
            RewardError: with ``on_error`` "stop", naming function, row and text.
        """
        each, faults = dict[str, Values](), dict[str, list[str]]()
        logged, extra = dict[str, list[float]](), dict[tuple[str, str], list[Any]]()
        for function, answers in zip(self.functions, self._answers(batch, faults), strict=True):
            values: list[float | None] = []
            for found, answer in answers:
                values += found
                for name, seen in answer.logged.items():
                    logged.setdefault(name, []).extend(seen)
                for name, column in answer.extra.items():
                    extra.setdefault((function.name, name), []).extend(column)
            each[function.name] = np.array([math.nan if value is None else value for value in values], np.float64)
        weights = np.array(self.weights or [1.0] * len(self.functions))[:, None]
        stacked = np.stack([each[function.name] for function in self.functions])
        applies = ~np.isnan(stacked)
        total = np.where(applies.any(0), np.where(applies, weights * stacked, 0.0).sum(0), math.nan)
        means = {name: float(np.mean(seen)) for name, seen in logged.items()}
        names = [name for _, name in extra]
        whole = {
            name if names.count(name) == 1 else f"{function}/{name}": column
            for (function, name), column in extra.items()
            if len(column) == len(batch) and not faults.get(function)
        }
        failed = {name: len(own) for name, own in faults.items()}
        return Rewarded(total, each, failed, means, whole, next((own[0] for own in faults.values()), ""))

    def close(self) -> None:
        """End the processes that functions are called in."""
        for workers in self._pool:
            workers.close()

    def _answers(self, batch: Completions, faults: dict[str, list[str]]) -> list[list[Found]]:
        """What each function says; coroutines wait for others side by side, as in TRL."""
        waiting = [i for i, function in enumerate(self.functions) if function.waits and not self._pool]
        together = waiting if len(waiting) > 1 else []
        told = {
            i: self._values(function, batch, faults) for i, function in enumerate(self.functions) if i not in together
        }
        works = [partial(self._values, self.functions[i], batch, faults) for i in together]
        told |= zip(together, side_by_side(works, "rewards"), strict=True)
        return [told[i] for i in range(len(self.functions))]

    def _values(self, function: RewardFunction, batch: Completions, faults: dict[str, list[str]]) -> list[Found]:
        """A number, or None, a completion; where the whole does not work, one by one, to find whose fault it is."""
        try:
            return self._checked(function, batch)
        except RewardError as error:
            found: list[Found] = []
            slow = isinstance(error.__cause__, SlowCallError) and self.on_error == "stop"
            until = perf_counter() + self.timeout
            for i in range(len(batch)):
                if slow and perf_counter() > until:
                    raise  # each takes its time, and none hangs
                try:
                    found += self._checked(function, batch.part(slice(i, i + 1)))
                except RewardError as own:
                    if self.on_error == "stop":
                        raise
                    faults.setdefault(function.name, []).append(str(own))
                    found.append(([None], Returned(None)))
            if not faults.get(function.name):
                raise  # only all together do not work: nobody's fault but the function's
            return found

    def _checked(self, function: RewardFunction, batch: Completions) -> list[Found]:
        """What a function says of the parts of a batch, which it is called with side by side."""
        size = -(-len(batch) // max(1, self.workers))
        parts = [batch.part(slice(start, start + size)) for start in range(0, len(batch), size)]
        try:
            answers = (
                self._pool[0].call(function, [part.given for part in parts], self.timeout)
                if self._pool
                else [call_here(function, part.given, self.timeout) for part in parts]
            )
        except CallError as error:
            slow = isinstance(error, SlowCallError)
            message = _at(function, batch, 0, str(error), all_of_it=True) + _advice(batch, str(error), slow)
            raise RewardError(message) from (error if slow else error.__cause__)
        return [(_numbers(function, part, each.value), each) for part, each in zip(parts, answers, strict=True)]


def _numbers(function: RewardFunction, batch: Completions, found: Any) -> list[float | None]:
    count = len(batch)
    if not isinstance(found, list) or len(found) != count:
        got = f"{len(found)} values" if isinstance(found, list) else repr(found)[:SHOWN]
        what = f"returned {got}; a list of {count} was expected, one a completion"
        raise RewardError(_at(function, batch, 0, what, all_of_it=True))
    values: list[float | None] = []
    for i, value in enumerate(found):
        if value is None or _is_nan(value):  # which TRL takes for None
            values.append(None)
            continue
        if expected := _expected_instead(value):
            raise RewardError(_at(function, batch, i, f"returned {value!r:.40}; {expected} was expected"))
        values.append(float(value))
    return values


def _is_nan(value: object) -> bool:
    return isinstance(value, float | np.floating) and math.isnan(value)


def _expected_instead(value: object) -> str:
    """What a reward has to be, if this is none."""
    if not isinstance(value, numbers.Real | np.floating | np.integer | np.bool_):
        return "a finite number or None"
    if isinstance(value, float | np.floating) and math.isinf(value):
        return "a finite number or None"
    size: Any = abs(value)
    return "" if size <= LARGEST else f"a number of at most {LARGEST:g}"


def _at(function: RewardFunction, batch: Completions, i: int, what: str, *, all_of_it: bool = False) -> str:
    text = text_of(batch.completions[i])
    short = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    more = f", and {len(batch) - 1} more" if all_of_it and len(batch) > 1 else ""
    return f"reward {function.name!r} {what}; {batch.places[i]}, text {short!r}{more}"


def _advice(batch: Completions, error: str, slow: bool) -> str:
    """What a slow function may be given, and what completions are, where one may have taken them for something else."""
    if slow:
        return "; task.reward_timeout gives a call more time, and task.workers shares texts out among processes"
    taken = ("raised TypeError", "raised AttributeError", "raised IndexError: string index")
    if not error.startswith(taken) or "trainer_state has" in error:
        return ""
    form = "texts" if isinstance(batch.completions[0], str) else "lists of messages"
    return f"; completions are {form} here, as prompts are"


def shaped(rewards: Values, shaping: Shaping) -> Values:
    """One number a lane, larger is better, from ``rewards`` [lanes, prompts, samples]; NaN counts as not there.

    ``raw``: the mean. ``zscore``: in standard deviations from the mean of all. ``prompt``: the same among the texts of each prompt.
    ``rank``: lanes by their means, from -1/2 to 1/2; equal ones share their places. A lane with no rewards gets what is in the middle.
    """
    if shaping == "rank":
        means = _mean(rewards, float(np.nanmean(rewards)) if np.isfinite(rewards).any() else 0.0)
        places = np.array([(means < mean).sum() + ((means == mean).sum() - 1) / 2 for mean in means])
        return np.asarray(places / max(1, len(means) - 1) - 0.5)
    if shaping != "raw":
        axes = (0, 2) if shaping == "prompt" else (0, 1, 2)
        rewards = _standard(rewards, axes)
    known = rewards[np.isfinite(rewards)]
    return _mean(rewards, float(known.mean()) if len(known) else 0.0)


def advantages_of(rewards: Values) -> Values:
    """How much better each text is than others of its prompt, in their standard deviations: ``rewards`` [prompts, samples]; 0 where there is none."""
    return np.nan_to_num(_standard(rewards, (1,)), nan=0.0)


ROUNDING = 1e-12
"""Rewards that differ by less, relatively, are the same."""


def _standard(rewards: Values, axes: tuple[int, ...]) -> Values:
    there = np.isfinite(rewards)
    count = np.maximum(1, there.sum(axes, keepdims=True))
    mean = np.where(there, rewards, 0.0).sum(axes, keepdims=True) / count
    off = np.where(there, rewards - mean, 0.0)
    deviation = np.sqrt((off**2).sum(axes, keepdims=True) / count)
    size = np.where(there, np.abs(rewards), 0.0).max(axes, keepdims=True, initial=0.0)
    differ = deviation > ROUNDING * size  # the mean of equal rewards is off by rounding
    return np.where(there, np.where(differ, off, 0.0) / np.where(differ, deviation, 1.0), math.nan)


def _mean(rewards: Values, otherwise: float) -> Values:
    """By lane."""
    there = np.isfinite(rewards)
    count = there.sum((1, 2))
    return np.asarray(np.where(count, np.where(there, rewards, 0.0).sum((1, 2)) / np.maximum(1, count), otherwise))


def metrics(rewarded: Rewarded, rewards: Values, texts: Sequence[Continuation]) -> dict[str, float]:
    """What happened, under TRL's names; ``rewards`` is the total as [lanes, prompts, samples], ``texts`` all of them in that order.

    ``frac_reward_zero_std`` is the share of prompts all of whose texts got the same, ``frac_reward_none`` that of texts to which no function applies.
    """
    found = {"reward": _nan(np.nanmean, rewarded.total), "reward_std": _nan(np.nanstd, rewarded.total)}
    for name, values in rewarded.each.items():
        found |= {f"rewards/{name}/mean": _nan(np.nanmean, values), f"rewards/{name}/std": _nan(np.nanstd, values)}
    flat = [len(np.unique(own[np.isfinite(own)])) <= 1 for own in rewards.transpose(1, 0, 2)]
    found["frac_reward_zero_std"] = float(np.mean(flat))
    found["completions/mean_length"] = float(np.mean([len(text.tokens) for text in texts]))
    found["completions/clipped_ratio"] = float(np.mean([not text.stopped for text in texts]))
    found["frac_reward_none"] = float(np.mean(np.isnan(rewarded.total)))
    return {**found, **{f"reward_errors/{name}": float(n) for name, n in rewarded.failed.items()}, **rewarded.logged}


def _nan(of: Callable[[Values], Any], values: Values) -> float:
    return float(of(values)) if np.isfinite(values).any() else math.nan
