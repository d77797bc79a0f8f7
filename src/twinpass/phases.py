"""Which phase of a step a function's time belongs to, for whoever listens: a clock, a profiler's labels.

Functions say it themselves, so that who measures patches nothing::

    @phase("linear")
    def of_linear(module, x): ...

    with listening(lambda name, function, args, kwargs: ...):
        ...
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

Phase = Literal["noise", "linear", "product", "attention", "logits", "update", "cache"]
"""A "product" draws noise and multiplies at once: it is part of a "linear" phase, and noise in part."""

P = ParamSpec("P")
R = TypeVar("R")

PhaseListener = Callable[[Phase, Callable[..., Any], tuple[Any, ...], Mapping[str, Any]], Any]
"""Is given every call of a phase's function, and has to make it: ``return function(*args, **kwargs)``."""

_listener: ContextVar[PhaseListener | None] = ContextVar("twinpass_phases", default=None)


def phase(name: Phase) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a function as a phase; it runs as it is while nobody listens."""

    def mark(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def marked(*args: P.args, **kwargs: P.kwargs) -> R:
            listener = _listener.get()
            if listener is None:
                return function(*args, **kwargs)
            found: R = listener(name, function, args, kwargs)
            return found

        return marked

    return mark


@contextmanager
def listening(listener: PhaseListener) -> Iterator[None]:
    """Inside the block calls of phases in this thread go by the listener."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
