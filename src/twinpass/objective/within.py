"""A call that is not waited for longer than a limit."""

import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

AGAIN = 1.0
"""Seconds after which a call that caught its signal gets another."""


class TimeUp(BaseException):
    """A call takes too long; raised in it, where ``except Exception`` does not catch it."""


def within(seconds: float, work: Callable[[], T], name: str) -> T:
    """What ``work`` returns, or raises.

    In the main thread it is called where it is, and a signal breaks it off: functions may set timers of their own (``signal.alarm``, which
    then goes before this limit), or use connections and event loops that belong to the thread which made them. In other threads, and where
    there is no such signal, it is called in a thread called ``name``, which is left behind if it hangs, and ends with the process.

    Raises:
        TimeUp: it takes longer.
    """
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        return _broken_off(seconds, work)
    return _left_behind(seconds, work, name)


def side_by_side(works: Sequence[Callable[[], T]], name: str) -> list[T]:
    """What each returns, in threads that end with the process; the first error in their order, once all have ended."""
    found: dict[int, T] = {}
    raised: dict[int, BaseException] = {}

    def call(i: int) -> None:
        try:
            found[i] = works[i]()
        except BaseException as error:  # any code runs here
            raised[i] = error

    threads = [threading.Thread(target=call, args=(i,), daemon=True, name=f"{name}-{i}") for i in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[min(raised)]
    return [found[i] for i in range(len(works))]


def _broken_off(seconds: float, work: Callable[[], T]) -> T:
    rung = over = False

    def ring(number: int, frame: FrameType | None) -> None:
        nonlocal rung
        if not over:
            rung = True
            raise TimeUp

    before = signal.signal(signal.SIGALRM, ring)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        try:
            found = work()
        finally:
            over = True
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)
    if rung:  # it caught that, and went on
        raise TimeUp
    return found


def _left_behind(seconds: float, work: Callable[[], T], name: str) -> T:
    found: list[T] = []
    raised: list[BaseException] = []

    def call() -> None:
        try:
            found.append(work())
        except BaseException as error:  # any code runs here
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True, name=name)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not found:
        raise TimeUp
    return found[0]
