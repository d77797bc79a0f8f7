"""Where a step's time goes: a clock that listens to its phases (:mod:`twinpass.phases`)."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

from twinpass.phases import Phase, listening

PHASES = ("noise", "linear", "attention", "logits", "update", "cache", "other")
"""What is none of them is ``other``: norms, activations, Python."""


class SecondsByPhase:
    """Seconds by phase; a phase inside another one takes its time from it, and what is inside none is ``other``."""

    def __init__(self, phases: Iterable[str]) -> None:
        self.seconds = dict.fromkeys([*phases, "other"], 0.0)
        self._inside = ["other"]
        self.begin()

    def begin(self) -> None:
        """Count from now on."""
        self._since = time.perf_counter()

    def switch(self) -> None:
        """What has passed belongs to the phase that runs."""
        before, self._since = self._since, time.perf_counter()
        self.add(self._since - before)

    def add(self, seconds: float) -> None:
        """Count these for the phase that runs."""
        self.seconds[self._inside[-1]] += seconds

    def within(self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run a function as a phase."""
        self.switch()
        self._inside.append(name)
        try:
            return function(*args, **kwargs)
        finally:
            self.switch()
            self._inside.pop()


class Clock(SecondsByPhase):
    """Seconds of the engine's phases."""

    def __init__(self) -> None:
        super().__init__(PHASES)

    @contextmanager
    def running(self) -> Iterator["Clock"]:
        """Count everything that runs inside the block."""
        with listening(self._hear):
            self.begin()
            yield self
            self.switch()

    def shares(self) -> dict[str, float]:
        """Of the whole, by phase."""
        total = sum(self.seconds.values())
        return {name: seconds / total for name, seconds in self.seconds.items()}

    def _hear(self, name: Phase, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if name == "product":
            return self._forming_apart(function, args, kwargs)
        return self.within(name, function, args, kwargs)

    def _forming_apart(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The product, counted where it is called, but for what forming its weights takes: that is done once more, for no rows, to know it.

        Rows are the first argument, the product goes to ``y``, rows in the second axis of both.
        """
        none = signature(function).bind(*args, **kwargs)
        for name in (next(iter(none.arguments)), "y"):
            none.arguments[name] = none.arguments[name][:, :0]
        self.switch()
        function(*none.args, **none.kwargs)
        started, self._since = self._since, time.perf_counter()
        formed = self._since - started
        found = function(*args, **kwargs)
        formed = min(formed, time.perf_counter() - self._since)
        self.seconds["noise"] += formed
        self.add(-formed)
        return found
