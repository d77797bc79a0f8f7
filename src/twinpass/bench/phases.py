"""Where a step's time goes: a clock that listens to its phases (:mod:`twinpass.phases`)."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

from twinpass.phases import Phase, listening

PHASES = ("noise", "linear", "attention", "logits", "update", "cache", "other")
"""What is none of them is ``other``: norms, activations, Python."""


class Clock:
    """Seconds by phase; a phase inside another one takes its time from it."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._inside = ["other"]
        self._since = time.perf_counter()

    @contextmanager
    def running(self) -> Iterator["Clock"]:
        """Count everything that runs inside the block."""
        with listening(self._hear):
            self._since = time.perf_counter()
            yield self
            self._switch()

    def shares(self) -> dict[str, float]:
        """Of the whole, by phase."""
        total = sum(self.seconds.values())
        return {name: seconds / total for name, seconds in self.seconds.items()}

    def _hear(self, name: Phase, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if name == "product":
            return self._forming_apart(function, args, kwargs)
        self._switch()
        self._inside.append(name)
        try:
            return function(*args, **kwargs)
        finally:
            self._switch()
            self._inside.pop()

    def _switch(self) -> None:
        now = time.perf_counter()
        self.seconds[self._inside[-1]] += now - self._since
        self._since = now

    def _forming_apart(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The product, counted where it is called, but for what forming its weights takes: that is done once more, for no rows, to know it.

        Rows are the first argument, the product goes to ``y``, rows in the second axis of both.
        """
        none = signature(function).bind(*args, **kwargs)
        for name in (next(iter(none.arguments)), "y"):
            none.arguments[name] = none.arguments[name][:, :0]
        self._switch()
        function(*none.args, **none.kwargs)
        started, self._since = self._since, time.perf_counter()
        formed = self._since - started
        found = function(*args, **kwargs)
        formed = min(formed, time.perf_counter() - self._since)
        self.seconds["noise"] += formed
        self.seconds[self._inside[-1]] -= formed
        return found
