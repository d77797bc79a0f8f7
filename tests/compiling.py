"""What Numba compiles is compiled by one of the processes that test at the same time; the others find it on disk."""

import fcntl
import os
from pathlib import Path
from typing import Any

from numba.core import event

from twinpass.perturb.compiled import FOLDER


class OneAtATime(event.Listener):  # type: ignore[misc]
    """Holds a lock of the system while Numba's own is held, under which it looks for compiled code first and compiles then."""

    def __init__(self, file: Path) -> None:
        self._handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._depth = 0

    def on_start(self, event: Any) -> None:
        if not self._depth:
            fcntl.flock(self._handle, fcntl.LOCK_EX)
        self._depth += 1

    def on_end(self, event: Any) -> None:
        self._depth -= 1
        if not self._depth:
            fcntl.flock(self._handle, fcntl.LOCK_UN)


def one_at_a_time() -> None:
    """From now on in this process, among those that keep what they compile in the same folder."""
    if FOLDER is not None:
        event.register("numba:compiler_lock", OneAtATime(FOLDER / "lock"))
