"""One process at a time writes a folder: an advisory lock, held by the system, so that a crash leaves none behind."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from twinpass.errors import BusyError
from twinpass.report.files import storing

NAME = ".lock"
"""The file that is locked; it says who holds it, and is taken away with the lock."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Be the only one that writes ``folder``, until the block ends.

    Raises:
        BusyError: another process is; named by process id and host.
        StorageError: the folder cannot be written, or not be locked.
    """
    path = folder / NAME
    with storing(path, "locked"):
        handle = _acquire(path)
    try:
        yield
    finally:
        with suppress(OSError):
            if _is(path, handle):
                path.unlink()
        os.close(handle)


def _acquire(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(handle)
            os.close(handle)
            raise BusyError(
                f"{path.parent} is being written by {holder}; wait until that has ended, or stop it"
            ) from error
        except OSError:
            os.close(handle)
            raise
        if _is(path, handle):
            with suppress(OSError):  # only others' messages are the poorer for it
                os.ftruncate(handle, 0)
                os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
            return handle
        os.close(handle)


def _is(path: Path, handle: int) -> bool:
    """Whether the file locked is still the one that others would find."""
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(handle))
    except FileNotFoundError:
        return False


def _holder(handle: int) -> str:
    """Who wrote itself into a lock; it does so right after it got it."""
    for _ in range(20):
        with suppress(ValueError, KeyError, TypeError):
            owner = json.loads(os.pread(handle, 4096, 0))
            return f"process {int(owner['pid'])} on {str(owner['host'])[:200]!r}"
        time.sleep(0.01)
    return "another process"
