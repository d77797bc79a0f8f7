"""What goes to standard output: results for people, or with ``--json`` JSON, a line each, and nothing else there."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_results: ContextVar[TextIO | None] = ContextVar("results", default=None)
"""Where lines go; None: standard output."""

WIDE = 10_000
"""Columns of a file or a pipe."""

HELP = "print {} as JSON, a line each, and nothing else on standard output; an error is a line, too"


def paper() -> "Console":
    """Where a command writes the result that it was asked for; where no terminal reads it, lines are as long as they are."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)


def loading(console: "Console", *things: object) -> None:
    """Say what is loaded, before it is: imports take seconds, too."""
    from twinpass.report.terminal import safe

    console.print(f"loading {' and '.join(map(safe, things))} ...")


def say(fields: Mapping[str, Any]) -> None:
    """Print a line, at once."""
    from twinpass.report.plain import dumped

    print(dumped(fields), flush=True, file=_results.get())


@contextmanager
def alone(json: bool) -> Iterator[None]:
    """With ``json``, let whatever else the block prints, such as a reward function, go to standard error."""
    if not json:
        yield
        return
    before = _results.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _results.reset(before)


@contextmanager
def last_words(stream: TextIO) -> Iterator[None]:
    """Let a stream that takes nothing more (its reader has gone, its disk is full) lose what the block writes to it.

    What is in its buffer is not tried again when Python ends, which would change the exit code.
    """
    try:
        yield
    except OSError:
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), stream.fileno())
