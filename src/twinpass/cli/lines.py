"""What ``--json`` means, the same in every command: JSON on standard output, a line each, and nothing else there."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TextIO

HELP = "print {} as JSON, a line each, and nothing else (docs/watch.md)"


def say(fields: Mapping[str, Any]) -> None:
    """Print a line, at once."""
    print(json.dumps(fields), flush=True)


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
