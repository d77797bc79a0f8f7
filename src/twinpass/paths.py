"""Paths as users write them."""

from pathlib import Path


def expand(path: str) -> Path:
    """``path`` with a leading ``~`` resolved; one of an unknown user stays as it is, and is then not found."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
