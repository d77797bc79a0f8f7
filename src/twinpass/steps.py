"""The steps in force, and what is made of them: taken further with every step, not made anew."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from twinpass.core import StepReport

S = TypeVar("S")
Take = Callable[[S, StepReport], S]


@dataclass(frozen=True, slots=True)
class Rollback:
    """Go back to the weights after ``to`` steps, because of ``reason``."""

    to: int
    reason: str


class Steps(list[StepReport]):
    """Steps in order, that remember what :func:`folded` made of them. They grow at the end, and are :meth:`cut`."""

    def __init__(self, steps: Iterable[StepReport] = ()) -> None:
        super().__init__(steps)
        self.made: dict[Take[Any], tuple[int, Any]] = {}
        self.tails: dict[int, Steps] = {}

    def cut(self, to: int) -> None:
        """Keep the first ``to``."""
        del self[to:]
        self.made.clear()
        self.tails.clear()


def folded(steps: Sequence[StepReport], start: S, take: Take[S]) -> S:
    """``take(take(start, steps[0]), steps[1])`` and so on. What it costs does not grow with :class:`Steps`.

    Args:
        steps: any sequence; only :class:`Steps` remember.
        start: never changed, nor is any other state.
        take: a function of a module or a method, by which it is remembered: no lambda. It goes with one ``start``.
    """
    made: dict[Take[S], tuple[int, S]] = steps.made if isinstance(steps, Steps) else {}
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
    tail = steps.tails.setdefault(first, Steps())
    tail += steps[first + len(tail) :]
    return tail
