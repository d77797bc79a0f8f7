"""SIGTERM and SIGHUP end a command as SIGINT does: with what is written closed, and a word on how to go on."""

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

SOON = 0.05
"""Seconds until an interrupt that was lost is made again."""


class Ended(KeyboardInterrupt):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


@contextmanager
def ending_like_interrupt() -> Iterator[None]:
    """Raise :class:`Ended` where one of these signals comes; once, a second one ends the process at once.

    Signals that are ignored (``nohup``) or handled otherwise stay so. An interrupt that comes while C calls Python, as compilers of
    kernels do, is dropped there by Python; it is made again.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in ENDING}
    ours = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    others, over = sys.unraisablehook, threading.Event()

    def again(number: int) -> None:
        if not over.wait(SOON):
            _thread.interrupt_main(signal.Signals(number))

    def dropped(what: "sys.UnraisableHookArgs") -> None:
        error = what.exc_value
        if not isinstance(error, KeyboardInterrupt):
            others(what)
            return
        while error is not None:
            try:
                number = error.signal if isinstance(error, Ended) else int(signal.SIGINT)
                if isinstance(error, Ended):
                    signal.signal(number, _end)
                # not waited for, as a Timer's start is: on a busy machine it would come while that still lasts
                _thread.start_new_thread(again, (number,))
                error = None
            except KeyboardInterrupt as another:  # and what comes in here would be dropped as well
                error = another

    try:
        for number in ours:
            signal.signal(number, _end)
        sys.unraisablehook = dropped
        yield
    finally:
        sys.unraisablehook = others
        over.set()
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> None:
    for each in ENDING:
        if signal.getsignal(each) is _end:
            signal.signal(each, signal.SIG_DFL)
    raise Ended(number)
