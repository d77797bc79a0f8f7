"""The steps in force, and what is made of them: taken further with every step, not made anew."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from twinpass.compact import Compact
from twinpass.core import StepReport

S = TypeVar("S")
Take = Callable[[S, StepReport], S]


@dataclass(frozen=True, slots=True)
class Rollback:
    """Go back to the weights after ``to`` steps, because of ``reason``."""

    to: int
    reason: str


class Steps(Compact[StepReport]):
    """Steps in order, that remember what :func:`folded` made of them. They grow at the end, and are :meth:`cut`."""

    def __init__(self, steps: Iterable[StepReport] = ()) -> None:
        super().__init__(steps)
        self.made: dict[Take[Any], tuple[int, Any]] = {}
        self.tails: dict[int, Tail] = {}

    def cut(self, to: int) -> None:
        super().cut(to)
        self.made.clear()
        self.tails.clear()


class Tail(Sequence[StepReport]):
    """Steps from the ``first`` on, that grow with all of them and remember, too."""

    def __init__(self, steps: Steps, first: int) -> None:
        self.steps, self.first = steps, first
        self.made: dict[Take[Any], tuple[int, Any]] = {}

    def __len__(self) -> int:
        return max(0, len(self.steps) - self.first)

    @overload
    def __getitem__(self, at: int) -> StepReport: ...

    @overload
    def __getitem__(self, at: slice) -> list[StepReport]: ...

    def __getitem__(self, at: int | slice) -> StepReport | list[StepReport]:
        here = range(self.first, len(self.steps))[at]
        return [self.steps[i] for i in here] if isinstance(here, range) else self.steps[here]


def folded(steps: Sequence[StepReport], start: S, take: Take[S]) -> S:
    """``take(take(start, steps[0]), steps[1])`` and so on. What it costs does not grow with :class:`Steps`.

    Args:
        steps: any sequence; only :class:`Steps` and their :class:`Tail` remember.
        start: never changed, nor is any other state.
        take: a function of a module or a method, by which it is remembered: no lambda. It goes with one ``start``.
    """
    made: dict[Take[S], tuple[int, S]] = steps.made if isinstance(steps, Steps | Tail) else {}
    done, state = made.get(take, (0, start))
    for i in range(done, len(steps)):
        state = take(state, steps[i])
    made[take] = len(steps), state
    return state


def since(steps: Sequence[StepReport], first: int) -> Sequence[StepReport]:
    """The steps from ``first`` on."""
    if not first:
        return steps
    if not isinstance(steps, Steps):
        return steps[first:]
    return steps.tails.setdefault(first, Tail(steps, first))
