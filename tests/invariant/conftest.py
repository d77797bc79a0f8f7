"""Runs draw no plots, unless they are what a test is about (``@pytest.mark.plots``)."""

from pathlib import Path
from typing import Any

import pytest

from twinpass.train import run


@pytest.fixture(autouse=True)
def without_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_the_folder(rows: Any, metric_name: str, path: Path) -> list[Path]:
        path.mkdir(parents=True, exist_ok=True)
        return []

    if request.node.get_closest_marker("plots") is None:
        monkeypatch.setattr(run, "draw_run", only_the_folder)
