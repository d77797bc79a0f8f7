"""Small kernels run on one thread, and Numba's threads leave torch as many as it had."""

import numba
import numeric
import pytest
import torch

from twinpass.perturb import threads as module

threads = numeric.threads


@pytest.mark.parametrize(("elements", "serial"), [(0, True), (32767, True), (32768, False), (10**7, False)])
def test_few_elements_wake_no_second_thread(threads: int, elements: int, serial: bool) -> None:
    with module.threads_for(elements):
        assert numba.get_num_threads() == (1 if serial else threads)
    assert numba.get_num_threads() == threads


def test_kernels_have_no_more_threads_than_torch(threads: int) -> None:
    """A process that was given one core (``OMP_NUM_THREADS=1``) must not wait for a second at every kernel."""
    torch.set_num_threads(1)
    with module.threads_for(10**7):
        assert numba.get_num_threads() == 1
    assert numba.get_num_threads() == threads


def test_as_many_threads_as_before_come_back_after_an_error() -> None:
    before = numba.get_num_threads()
    with pytest.raises(RuntimeError, match="within"), module.threads_for(1):
        raise RuntimeError("within")
    assert numba.get_num_threads() == before


def test_torch_keeps_its_threads_when_those_of_numba_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where both share OpenMP, starting Numba's sets how many torch uses."""
    before = torch.get_num_threads()

    def started() -> int:
        torch.set_num_threads(before + 2)
        return 1

    monkeypatch.setattr(module, "get_num_threads", started)
    try:
        module._start_threads()
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)
