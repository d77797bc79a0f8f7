"""How many of Numba's threads a kernel runs on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from numba import get_num_threads, set_num_threads

SERIAL = 1 << 15
"""Below this many elements waking a second thread costs more than it gives."""


def _start_threads() -> None:
    """Start Numba's threads now. They share OpenMP with torch's, and starting them sets how many torch uses."""
    before = torch.get_num_threads()
    get_num_threads()
    torch.set_num_threads(before)


_start_threads()


@contextmanager
def threads_for(elements: int) -> Iterator[None]:
    """One thread for few elements inside the block, as many as before for more, and no more than torch has: ``OMP_NUM_THREADS`` is for both."""
    before = get_num_threads()
    set_num_threads(1 if elements < SERIAL else min(before, torch.get_num_threads()))
    try:
        yield
    finally:
        set_num_threads(before)
