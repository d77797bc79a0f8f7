"""Numba's threads (and torch's, which they are not to exceed) in tests, and arrays as bits: fixtures are taken over as ``one_thread = numeric.one_thread``."""

from collections.abc import Iterator
from typing import Any

import numba
import pytest
import torch
from numpy.typing import NDArray

Array = NDArray[Any]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Waking a second thread costs more than these small tensors do, on a busy machine a hundred times more."""
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The test runs on one thread and on two."""
    count: int = request.param
    before, of_torch = numba.get_num_threads(), torch.get_num_threads()
    try:
        numba.set_num_threads(count)
    except ValueError:
        pytest.skip(f"Numba was started with fewer than {count} threads")
    torch.set_num_threads(count)
    yield count
    numba.set_num_threads(before)
    torch.set_num_threads(of_torch)


def bits(values: Array) -> Array:
    """The memory of floats as unsigned integers: equal bits, where NaN equals itself and -0 is not 0."""
    return values.view(f"u{values.itemsize}")
