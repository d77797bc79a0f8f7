"""How a reward function is called: in this process or in others, and never waited for longer than a limit."""

import math
import multiprocessing
import pickle
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import redirect_stdout
from dataclasses import dataclass, field, fields
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

from twinpass.errors import RewardError
from twinpass.objective.reward_functions import RewardFunction, load_reward
from twinpass.objective.within import TimeUp, within

Given = Mapping[str, Any]
"""What a function is called with, by keyword."""


@dataclass(frozen=True, slots=True)
class TrainerState:
    """What transformers' ``TrainerState`` says of a run, as far as it is known here: steps made so far, and planned."""

    global_step: int = 0
    max_steps: int = 0
    is_local_process_zero: bool = True
    is_world_process_zero: bool = True

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"trainer_state has {', '.join(each.name for each in fields(self))} here, and no {name!r}; go by global_step / max_steps"
        )


@dataclass(frozen=True, slots=True)
class Returned:
    """What a function returned, and what it gave to ``log_metric`` and ``log_extra``, by name."""

    value: Any
    logged: Mapping[str, Sequence[float]] = field(default_factory=dict)
    extra: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class CallError(Exception):
    """A call did not come to an end as it should; the message says how, without a subject."""


class SlowCallError(CallError):
    """It took longer than it may."""

    def __init__(self, timeout: float) -> None:
        super().__init__(f"did not return within {timeout:g} s")


def answer_of(function: RewardFunction, given: Given) -> Returned:
    """Call a function, with functions to log with."""
    logged: dict[str, list[float]] = {}
    extra: dict[str, list[Any]] = {}

    def log_metric(name: str, value: float) -> None:
        logged.setdefault(name, []).append(float(value))

    def log_extra(column: str, values: Sequence[Any]) -> None:
        extra.setdefault(column, []).extend(values)

    value = function.call(**{**given, "log_metric": log_metric, "log_extra": log_extra})
    return Returned(_listed(value), logged, extra)


def _listed(found: Any) -> Any:
    """A list of plain values, where it is a tensor, an array, a generator or a list of such scalars; anything else as it is."""
    if hasattr(found, "tolist"):
        column = len(getattr(found, "shape", ())) == 2 and found.shape[1] == 1  # a reward model's logits
        return (found.reshape(-1) if column else found).tolist()
    if not isinstance(found, Iterable) or isinstance(found, str | bytes | Mapping | Set):
        return found
    return [each.item() if math.prod(getattr(each, "shape", (0,))) == 1 else each for each in found]


def call_here(function: RewardFunction, given: Given, timeout: float) -> Returned:
    """Call a function in this process; in the main thread, if this is it.

    Raises:
        CallError: it raised, or hangs.
    """
    try:
        return within(timeout, lambda: answer_of(function, given), f"reward-{function.name}")
    except TimeUp:
        raise SlowCallError(timeout) from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # any code runs here
        raise CallError(_raised(error)) from error


class Workers:
    """Processes that functions are called in; they start with the first call, and one that hangs is ended.

    Raises:
        RewardError: a function cannot be sent to another process.
    """

    def __init__(self, functions: Sequence[RewardFunction], count: int) -> None:
        self._sources = {function.name: (function.name, function.source) for function in functions}
        for function in functions:
            try:
                pickle.dumps(function.source)
            except Exception as error:  # pickle raises whatever an object's own methods do
                raise RewardError(
                    f"reward {function.name!r} cannot be sent to another process ({error}); define it in a module, or set workers = 0"
                ) from error
        self._count = count
        self._pool: Pool | None = None

    def call(self, function: RewardFunction, parts: Sequence[Given], timeout: float) -> list[Returned]:
        """The answers to parts of a batch, which run side by side.

        Raises:
            CallError: the function raised, or hangs.
        """
        if self._pool is None:
            self._pool = multiprocessing.get_context("spawn").Pool(self._count)
        source = self._sources[function.name]
        waiting = [self._pool.apply_async(_work, (source, part)) for part in parts]
        try:
            return [each.get(timeout) for each in waiting]
        except multiprocessing.TimeoutError as error:
            self.close()
            raise SlowCallError(timeout) from error
        except CallError:
            raise
        except Exception as error:  # an answer that cannot be sent back
            raise CallError(_raised(error)) from error

    def close(self) -> None:
        """End all processes, whatever they do."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()
            self._pool = None


_known: dict[Any, RewardFunction] = {}
"""Functions that this process has been asked for: files are run once."""


def _work(named: tuple[str, Any], given: Given) -> Returned:
    if named not in _known:
        name, source = named
        _known[named] = load_reward(source, Path()) if isinstance(source, str) else RewardFunction.of(source, name)
    try:
        with redirect_stdout(sys.stderr):  # what it prints is no result of the command that started this process
            return answer_of(_known[named], given)
    except BaseException as error:  # any code runs here, and what it raises may not be sent
        raise CallError(_raised(error)) from None


def _raised(error: BaseException) -> str:
    return f"raised {type(error).__name__}: {error}"
