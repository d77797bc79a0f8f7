"""What the page on SGLang says of both engines' courses is what their result files hold."""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def courses(name: str) -> dict[tuple[int, int], float]:
    """Accuracies by seed and step, but for those before training."""
    found: Any = json.loads((ROOT / f"benchmarks/results/served-learning-{name}.json").read_text())
    return {
        (run["seed"], point["step"]): point["accuracy"]
        for run in found["runs"]
        for point in run["course"]
        if point["step"]
    }


def test_both_engines_learn_the_same() -> None:
    served, embedded = courses("informed"), courses("embedded")
    (stated,) = re.findall(r"each of the (\d+) evaluations after a step", (ROOT / "docs/sglang.md").read_text())
    assert len(served) == int(stated)
    assert {key: embedded[key] for key in served} == served
