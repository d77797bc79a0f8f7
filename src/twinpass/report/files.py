"""Files that are either the old or the new one, never half of each; what goes wrong with them is a message with a remedy."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from safetensors import SafetensorError

from twinpass.errors import StorageError, system_error

T = TypeVar("T")

_RIGHTS = "give this user the right to, or choose a place that it may write to"
_ROOM = "make room there, or choose a place that has some"

REMEDIES: Mapping[int, str] = MappingProxyType(
    {
        errno.ENOSPC: _ROOM,
        errno.EDQUOT: _ROOM,
        errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
        errno.EACCES: _RIGHTS,
        errno.EPERM: _RIGHTS,
        errno.EROFS: "choose a place that is not read-only",
        errno.ENOENT: "it is not there, or was removed meanwhile; put it back, or name another place",
        errno.ENOTDIR: "a file is in the way; name another place",
        errno.EEXIST: "a file is in the way; name another place",
        errno.EISDIR: "a folder is in the way; move it, or name another place",
        errno.ENAMETOOLONG: "choose a shorter name",
        errno.EMFILE: "raise the limit on open files (ulimit -n)",
        errno.EPIPE: "whoever read it has gone; write to a file, or let the reader stay",
        errno.EIO: "the disk reports a fault: look after it before anything else",
        errno.ENOLCK: "this file system cannot lock files; choose a place on another",
        errno.EOPNOTSUPP: "this file system cannot lock files; choose a place on another",
    }
)


def reason(error: Exception) -> str:
    """Why the system refused, and what to do about it."""
    number = system_error(error) or 0
    said = (error.strerror if isinstance(error, OSError) else os.strerror(number) if number else None) or str(error)
    return f"{said}; {REMEDIES.get(number, 'look after the disk, or choose another place')}"


@contextmanager
def storing(place: Path, verb: str = "written") -> Iterator[None]:
    """Turn what the system refuses in the block into one message about ``place``.

    Raises:
        StorageError: with a remedy.
    """
    try:
        yield
    except Exception as error:
        if system_error(error) is None and not isinstance(error, SafetensorError):
            raise
        raise StorageError(f"{place} cannot be {verb}: {reason(error)}") from error


def write_text(path: Path, text: str) -> None:
    """Write through a temporary file beside ``path`` and an atomic rename; on the disk when this returns.

    Raises:
        StorageError: it cannot be written; what was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.part")
    with storing(path):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Like :func:`write_text`, as indented JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def written(path: Path, write: Callable[[Path], T]) -> T:
    """Let ``write`` make a file, which is ``path`` once it is whole and on the disk; what ``write`` returns.

    Raises:
        StorageError: it cannot be written; what was there before is still there.
    """
    part = path.with_name(f".{path.name}.part")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            found = write(part)
            share(part)
            sync(part)
            part.replace(path)
        except Exception:
            part.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    return found


def put(new: Path, folder: Path) -> Path:
    """Let the folder ``new``, with its files on the disk, take the place of ``folder``, whatever that held; returns it."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    for path in [*new.rglob("*"), new]:
        if path.is_file():
            share(path)
        sync(path)
    if folder.exists():
        folder.replace(old)
    new.replace(folder)
    shutil.rmtree(old, ignore_errors=True)
    sync_folder(folder.parent)
    return folder


def share(path: Path) -> None:
    """Let a file be read by whomever this user's files are: safetensors 0.8 lets only its owner, and another user may have to serve it."""
    mask = os.umask(0o077)  # there is no way to ask
    os.umask(mask)
    with suppress(OSError):  # some file systems keep no such thing
        path.chmod(0o666 & ~mask)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Wait until a folder's list of names is on the disk, where the file system has such a thing."""
    try:
        sync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP):
            raise
