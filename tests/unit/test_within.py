"""Calls with a limit: what they return and raise, in the main thread and in others, and what is as it was before."""

import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from twinpass.objective.within import within


def _elsewhere(work: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_in_another_thread_it_returns_what_it_found_in_one_that_ends_with_the_process() -> None:
    def work() -> tuple[str, bool]:
        return threading.current_thread().name, threading.current_thread().daemon

    assert _elsewhere(lambda: within(30.0, work, "judging")) == ("judging", True)


def test_in_another_thread_it_raises_what_was_raised() -> None:
    def raised() -> str:
        with pytest.raises(ZeroDivisionError) as caught:
            within(30.0, lambda: 1 / 0, "judging")
        return str(caught.value)

    assert "division" in _elsewhere(raised)


def test_in_the_main_thread_a_handler_and_a_timer_of_before_are_back() -> None:
    def ring(*_: Any) -> None:
        raise AssertionError("nothing rings in this test")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 60.0, 7.0)
    try:
        assert within(30.0, lambda: signal.getsignal(signal.SIGALRM) is ring, "judging") is False
        assert signal.getsignal(signal.SIGALRM) is ring
        left, again = signal.getitimer(signal.ITIMER_REAL)
        assert (30.0 < left <= 60.0, again) == (True, 7.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
