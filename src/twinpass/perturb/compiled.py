"""Numba's ``njit``, with compiled code kept on disk under a name that says what it was compiled from.

Numba compiles a function together with those that it calls, and looks for changes in the file of the first only. A change of the noise in
``draw.py`` would not be seen by code compiled from ``kernels.py``: old noise, under the new noise's name in the journal. So the cache of all of
them lies in a folder named after the sources of this package, Numba, LLVM and the processor, and other sources find no code there.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite
import numba
from llvmlite import binding
from numba import njit
from numba.core import config

F = TypeVar("F", bound=Callable[..., Any])

PACKAGE = Path(__file__).parent


def fingerprint(package: Path = PACKAGE) -> str:
    """What code compiled from ``package`` depends on: its sources, the compilers, the processor; 16 hexadecimal digits."""
    processor = config.CPU_NAME or binding.get_host_cpu_name(), config.CPU_FEATURES, binding.get_host_cpu_features()
    digest = hashlib.sha256(repr((numba.__version__, llvmlite.__version__, processor)).encode())
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def candidates() -> Iterator[Path]:
    """Folders for compiled code, the best first: what ``NUMBA_CACHE_DIR`` says, beside the sources, the user's own cache.

    No folder that others may write to is among them: code is loaded from it.
    """
    if config.CACHE_DIR:
        yield Path(config.CACHE_DIR)
    yield PACKAGE / "__pycache__"
    try:
        own = os.environ.get("XDG_CACHE_HOME")
        yield (Path(own) if own else Path.home() / ".cache") / "twinpass"
    except RuntimeError:  # a user without a home
        return


def writable(folders: Iterable[Path], name: str) -> Path | None:
    """A new or existing folder ``name`` in the first of ``folders`` that can be written to; None: in none of them."""
    for folder in folders:
        try:
            (folder / name).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder / name).close()
        except OSError:
            continue
        return folder / name
    return None


FOLDER = writable(candidates(), f"numba-{fingerprint()}")
"""Where compiled code is kept; None: nowhere, and each process compiles for itself."""


def kernel(**options: Any) -> Callable[[F], F]:
    """:func:`numba.njit` with ``options``, for functions that Python calls."""

    def compiled(function: F) -> F:
        with _cache_in(FOLDER):
            return cast(F, njit(cache=FOLDER is not None, **options)(function))

    return compiled


@contextmanager
def _cache_in(folder: Path | None) -> Iterator[None]:
    """Numba asks for its folder when a function is decorated."""
    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder or "")
    try:
        yield
    finally:
        config.CACHE_DIR = before
