"""Configurations that are benchmarked, a clock that can be set, and peaks that are told or not."""

from pathlib import Path
from typing import Any

import pytest

from twinpass.config.compose import build_embedded
from twinpass.config.load import load_config
from twinpass.engine.embedded.engine import TorchEngine

FULL: dict[str, Any] = {"trainable": {"kind": "full"}, "estimator": {"probes": 1}, "optimizer": {"batch_size": 4}}
ACTIVATED = {**FULL, "trainable": {"kind": "activated", "rank": 2, "targets": ["q_proj", "v_proj"]}}


def engine_of(path: Path) -> Any:
    session = build_embedded(load_config(path))
    assert isinstance(session.engine, TorchEngine)
    return session


def no_memory_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinpass.bench.peak.RESET", Path("/nowhere"))


@pytest.fixture
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks are not measured, as where the system does not tell them: each takes a process of its own, and seconds."""
    no_memory_told(monkeypatch)


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.full)], ids=["untold", "memory"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether peaks are measured."""
    if not request.param:
        no_memory_told(monkeypatch)
    return bool(request.param)


def fits(peak: int | None, memory: bool) -> bool:
    return (peak or 0) > 2**20 if memory else peak is None


class Ticks:
    """A clock that shows these times, one a look; after them, one second more each time."""

    def __init__(self, *times: float) -> None:
        self._times = list(times)
        self._now = 0.0

    def perf_counter(self) -> float:
        self._now = self._times.pop(0) if self._times else self._now + 1.0
        return self._now
