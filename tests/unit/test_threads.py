"""Small kernels run on one thread, and Numba's threads leave torch as many as it had."""

import numba
import pytest
import torch

from twinpass.perturb import threads


@pytest.mark.parametrize(("elements", "serial"), [(0, True), (32767, True), (32768, False), (10**7, False)])
def test_few_elements_wake_no_second_thread(elements: int, serial: bool) -> None:
    before = numba.get_num_threads()
    with threads.threads_for(elements):
        assert numba.get_num_threads() == (1 if serial else before)
    assert numba.get_num_threads() == before


def test_as_many_threads_as_before_come_back_after_an_error() -> None:
    before = numba.get_num_threads()
    with pytest.raises(RuntimeError, match="within"), threads.threads_for(1):
        raise RuntimeError("within")
    assert numba.get_num_threads() == before


def test_torch_keeps_its_threads_when_those_of_numba_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where both share OpenMP, starting Numba's sets how many torch uses."""
    before = torch.get_num_threads()

    def started() -> int:
        torch.set_num_threads(before + 2)
        return 1

    monkeypatch.setattr(threads, "get_num_threads", started)
    try:
        threads._start_threads()
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)
