"""Values of which the fast tier runs some."""

from collections.abc import Collection, Iterable
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


def some_fast(values: Iterable[T], fast: Collection[T]) -> list[Any]:
    """Parameters of a test or fixture; those that are not ``fast`` are left to the full tier."""
    values = list(values)
    assert all(value in values for value in fast), f"{fast} are not all there"
    return [value if value in fast else pytest.param(value, marks=pytest.mark.full) for value in values]
