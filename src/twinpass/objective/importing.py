"""Modules that reward functions are in, as Python has them for a script: once each, and beside its own helpers."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from twinpass.errors import RewardError

_files: dict[Path, tuple[bytes, ModuleType]] = {}
"""Files that were run, and what was in them."""


def imported(spec: str, place: str, folder: Path) -> ModuleType:
    """The module ``package.module``, which may be in the working directory, or that of ``file.py`` in ``folder``.

    A file runs once, as long as it stays as it is; its functions share what it has made, and it may import what is beside it.

    Raises:
        RewardError: it is not there, or cannot be imported; it is called ``spec``.
    """
    try:
        if not place.endswith(".py"):
            with _beside(Path.cwd()):
                return importlib.import_module(place)
        path = (folder / place).resolve()
        if not path.is_file():
            raise RewardError(f"reward {spec!r}: there is no file {path}")
        text = path.read_bytes()
        known = _files.get(path)
        if known is None or known[0] != text:
            known = _files[path] = (text, _run(spec, path))
    except RewardError:
        raise
    except Exception as error:  # any code runs here
        raise RewardError(f"reward {spec!r}: {place} cannot be imported: {type(error).__name__}: {error}") from error
    return known[1]


def _run(spec: str, path: Path) -> ModuleType:
    name = _name_for(path)
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise RewardError(f"reward {spec!r}: {path} cannot be imported")
    module = importlib.util.module_from_spec(found)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickle look for it there
    try:
        with _beside(path.parent):
            found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise
    return module


def _name_for(path: Path) -> str:
    """The file's own, unless another module has it."""
    other, own = sys.modules.get(path.stem), _files.get(path)
    if other is None or (own is not None and own[1] is other):
        return path.stem
    return f"{path.stem}_{sha256(str(path).encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


@contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """Modules in a folder are found first, as if a script there was run; later the last, as functions may import when they are called."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
