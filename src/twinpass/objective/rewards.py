"""Rewards of texts: functions called with care, their values checked, weighed and shaped into one loss a lane."""

import math
import numbers
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from twinpass.core import Text
from twinpass.errors import RewardError
from twinpass.objective.reward_functions import RewardFunction, text_of

Values = NDArray[np.float64]
Shaping = Literal["raw", "zscore", "rank", "prompt"]
OnError = Literal["stop", "skip"]

SHOWN = 60
"""Characters of a text in a message."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Completions to be rewarded: of each its prompt, tokens, the other columns of its row, and ``places`` for messages."""

    prompts: Sequence[Any]
    completions: Sequence[Any]
    completion_ids: Sequence[Sequence[int]]
    columns: Mapping[str, Sequence[Any]]
    places: Sequence[str]

    def one(self, i: int) -> "Batch":
        """Completion ``i`` alone."""
        here = slice(i, i + 1)
        columns = {name: values[here] for name, values in self.columns.items()}
        return Batch(self.prompts[here], self.completions[here], self.completion_ids[here], columns, self.places[here])


@dataclass(frozen=True, slots=True)
class Rewarded:
    """``total`` [n], NaN where no function applies; ``each`` function's values by name, NaN likewise; ``failed`` calls by name; ``logged`` metrics."""

    total: Values
    each: Mapping[str, Values]
    failed: Mapping[str, int]
    logged: Mapping[str, float]


@dataclass(frozen=True)
class Rewards:
    """Some functions, and what each counts.

    Args:
        weights: one a function; 1 each, if there are none.
        timeout: seconds that a call may take. One that hangs is left behind in a thread that ends with the process.
        on_error: a reward that raises, hangs or is no number ends the run ("stop"), or its text counts as one that the function does
            not apply to ("skip").

    Raises:
        RewardError: there is no function, or weights of another number.
    """

    functions: Sequence[RewardFunction]
    weights: Sequence[float] = ()
    timeout: float = 60.0
    on_error: OnError = "stop"
    _logged: dict[str, list[float]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.functions:
            raise RewardError("there is no reward function; name at least one")
        if self.weights and len(self.weights) != len(self.functions):
            raise RewardError(f"{len(self.weights)} weights for {len(self.functions)} rewards; give one for each")

    def __call__(self, batch: Batch) -> Rewarded:
        """The rewards of a batch.

        Raises:
            RewardError: with ``on_error`` "stop", naming function, row and text.
        """
        self._logged.clear()
        each, failed = dict[str, Values](), dict[str, int]()
        for function in self.functions:
            values = self._values(function, batch, failed)
            each[function.name] = np.array([math.nan if value is None else value for value in values], np.float64)
        weights = np.array(self.weights or [1.0] * len(self.functions))[:, None]
        stacked = np.stack([each[function.name] for function in self.functions])
        applies = ~np.isnan(stacked)
        total = np.where(applies.any(0), np.where(applies, weights * stacked, 0.0).sum(0), math.nan)
        return Rewarded(total, each, failed, {name: float(np.mean(seen)) for name, seen in self._logged.items()})

    def _values(self, function: RewardFunction, batch: Batch, failed: dict[str, int]) -> list[float | None]:
        """One number, or None, a completion; where the whole does not work, one by one, to find whose fault it is."""
        try:
            return self._checked(function, batch)
        except RewardError:
            values: list[float | None] = []
            for i in range(len(batch.completions)):
                try:
                    values += self._checked(function, batch.one(i))
                except RewardError:
                    if self.on_error == "stop":
                        raise
                    failed[function.name] = failed.get(function.name, 0) + 1
                    values.append(None)
            if not failed.get(function.name):
                raise  # only all together do not work: nobody's fault but the function's
            return values

    def _checked(self, function: RewardFunction, batch: Batch) -> list[float | None]:
        found, count = self._called(function, batch), len(batch.completions)
        if not isinstance(found, list | tuple | np.ndarray) or len(found) != count:
            got = f"{len(found)} values" if hasattr(found, "__len__") else repr(found)[:SHOWN]
            raise RewardError(
                _at(function, batch, 0, f"returned {got}; a list of {count} was expected, one a completion")
            )
        values: list[float | None] = []
        for i, value in enumerate(found):
            if value is None:
                values.append(None)
                continue
            if not isinstance(value, numbers.Real | np.number | np.bool_) or not math.isfinite(float(value)):
                raise RewardError(
                    _at(function, batch, i, f"returned {value!r:.40}; a finite number or None was expected")
                )
            values.append(float(value))
        return values

    def _called(self, function: RewardFunction, batch: Batch) -> Any:
        """The function's answer, from a thread that is not waited for longer than ``timeout``."""
        box: list[Any] = []
        given = {
            **batch.columns,
            "prompts": list(batch.prompts),
            "completions": list(batch.completions),
            "completion_ids": [list(ids) for ids in batch.completion_ids],
            "trainer_state": None,
            "log_extra": lambda name, values: None,
            "log_metric": lambda name, value: self._logged.setdefault(name, []).append(float(value)),
        }

        def work() -> None:
            try:
                box.append((True, function.call(**given)))
            except BaseException as error:  # any code runs here
                box.append((False, error))

        thread = threading.Thread(target=work, daemon=True, name=f"reward-{function.name}")
        thread.start()
        thread.join(self.timeout)
        if not box:
            raise RewardError(_at(function, batch, 0, f"did not return within {self.timeout:g} s"))
        well, found = box[0]
        if not well:
            raise RewardError(_at(function, batch, 0, f"raised {type(found).__name__}: {found}")) from found
        return found


def _at(function: RewardFunction, batch: Batch, i: int, what: str) -> str:
    text = text_of(batch.completions[i])
    short = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return f"reward {function.name!r} {what}; {batch.places[i]}, text {short!r}"


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


def _standard(rewards: Values, axes: tuple[int, ...]) -> Values:
    there = np.isfinite(rewards)
    count = np.maximum(1, there.sum(axes, keepdims=True))
    mean = np.where(there, rewards, 0.0).sum(axes, keepdims=True) / count
    off = np.where(there, rewards - mean, 0.0)
    deviation = np.sqrt((off**2).sum(axes, keepdims=True) / count)
    return np.where(there, off / np.where(deviation > 0, deviation, 1.0), math.nan)


def _mean(rewards: Values, otherwise: float) -> Values:
    """By lane."""
    there = np.isfinite(rewards)
    count = there.sum((1, 2))
    return np.asarray(np.where(count, np.where(there, rewards, 0.0).sum((1, 2)) / np.maximum(1, count), otherwise))


def metrics(rewarded: Rewarded, rewards: Values, texts: Sequence[Text]) -> dict[str, float]:
    """What happened, under TRL's names; ``rewards`` is the total as [lanes, prompts, samples], ``texts`` all of them in that order.

    ``frac_reward_zero_std`` is the share of prompts all of whose texts got the same.
    """
    found = {"reward": _nan(np.nanmean, rewarded.total), "reward_std": _nan(np.nanstd, rewarded.total)}
    for name, values in rewarded.each.items():
        found |= {f"rewards/{name}/mean": _nan(np.nanmean, values), f"rewards/{name}/std": _nan(np.nanstd, values)}
    flat = [len(np.unique(own[np.isfinite(own)])) <= 1 for own in rewards.transpose(1, 0, 2)]
    found["frac_reward_zero_std"] = float(np.mean(flat))
    found["completions/mean_length"] = float(np.mean([len(text.tokens) for text in texts]))
    found["completions/clipped_ratio"] = float(np.mean([not text.stopped for text in texts]))
    return {**found, **{f"reward_errors/{name}": float(n) for name, n in rewarded.failed.items()}, **rewarded.logged}


def _nan(of: Callable[[Values], Any], values: Values) -> float:
    return float(of(values)) if np.isfinite(values).any() else math.nan
