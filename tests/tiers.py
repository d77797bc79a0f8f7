"""Names of which the fast tier runs some."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some_fast(names: Iterable[str], fast: Collection[str]) -> list[Any]:
    """Parameters of a test or fixture; those that are not ``fast`` are left to the full tier."""
    names = list(names)
    assert set(fast) <= set(names), f"{set(fast) - set(names)} are not there"
    return [name if name in fast else pytest.param(name, marks=pytest.mark.full) for name in names]
