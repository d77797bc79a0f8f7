"""A signal ends a command, wherever Python happens to be."""

import _thread
import ctypes
import os
import signal
import sys
import time
from typing import Any

import pytest

from twinpass.cli.signals import ENDING, Ended, ending_like_interrupt


def wait() -> None:
    """For longer than an interrupt is on its way."""
    for _ in range(500):
        time.sleep(0.01)


@pytest.mark.parametrize("late", [False, True], ids=["", "late"])
@pytest.mark.parametrize("number", [signal.SIGINT, *ENDING])
def test_an_interrupt_that_c_code_drops_comes_again(
    number: signal.Signals, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compilers of kernels call Python back, and nothing goes through them; nor through what makes it again, on a machine that is busy (``late``)."""
    seen: list[str] = []
    begun = _thread.start_new_thread

    def slowly(*arguments: Any) -> int:
        found = begun(*arguments)
        if seen.count("begun late") == 0:
            seen.append("begun late")
            wait()
        return found

    if late:
        monkeypatch.setattr(_thread, "start_new_thread", slowly)

    def call() -> None:
        seen.append("called")
        os.kill(os.getpid(), number)
        wait()
        seen.append("not reached")

    def work() -> None:
        ctypes.CFUNCTYPE(None)(call)()
        seen.append("and on")
        wait()
        seen.append("not reached either")

    hook = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt) as caught, ending_like_interrupt():
        work()
    assert seen == ["called", *(["begun late"] if late else []), "and on"]
    assert getattr(caught.value, "signal", signal.SIGINT) == number
    assert sys.unraisablehook is hook
    assert all(signal.getsignal(each) is signal.SIG_DFL for each in ENDING)


def test_a_second_signal_ends_at_once() -> None:
    with ending_like_interrupt():
        with pytest.raises(Ended):
            os.kill(os.getpid(), signal.SIGTERM)
        assert all(signal.getsignal(each) is signal.SIG_DFL for each in ENDING)


def test_signals_that_are_ignored_stay_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_like_interrupt():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
