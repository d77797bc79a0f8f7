"""The table of public tasks says what its runs came to, and leaves out what failed."""

from typing import Any

import page_tasks


def run(seed: int, *metrics: float, name: str = "accuracy", losses: tuple[float, ...] = (2.0, 1.0)) -> dict[str, Any]:
    course = [{"metric": metric, "loss": loss} for metric, loss in zip(metrics, losses, strict=False)]
    return {
        "seed": seed,
        "commit": "abc",
        "course": course,
        "metric_name": name,
        "base_metric": metrics[0],
        "held_out": 200,
        "train_seconds": 12.3,
    }


def lines(runs: dict[str, Any]) -> list[str]:
    task = {"task": {"train_rows": 300}, "files": {}, "runs": runs}
    result = {"tasks": {"SST2": task}, "machine": {"processor": "one"}, "model": "m"}
    return [line for line in page_tasks.section(result).splitlines() if line.startswith("| SST2")]


def test_the_best_of_each_seed_stands_beside_the_best_of_other_settings() -> None:
    runs = {
        "default": [run(1, 0.5, 0.9), run(2, 0.5, 0.8)],
        "quarter of the rate": [run(1, 0.5, 0.6)],
        "twice the rate": [run(1, 0.5, 0.96)],
        "80 steps": [run(1, 0.5, 0.96), run(2, 0.5, 0.84), run(3, 0.5, 0.99)],
        "informed": [run(1, 0.5, 0.7)],
        "lora": [{"seed": 1, "exit_code": 2, "commit": "abc"}],
    }
    assert lines(runs) == [
        "| SST2 | 300, 200 | 50.0% | 90.0%, 80.0% | 96.0% (twice the rate, 1 of 2 seeds) | 0.94 | 12 |",
        "| SST2 | 300, 200 | 50.0% | 70.0% | - | - | 12 |",
        "| SST2 | - | - | failed: exit code 2 | - | - | - |",
    ]
    runs["twice the rate"] = []
    assert "| 90.0% (80 steps, 2 of 2 seeds) | 0.94 |" in lines(runs)[0], "in the mean of seeds that both have"


def test_texts_are_told_by_nats_of_which_fewer_are_better() -> None:
    runs = {
        "default": [run(1, 0.1, 0.2, name="likelihood", losses=(2.5, 1.5))],
        "80 steps": [run(1, 0.1, 0.2, name="likelihood", losses=(2.5, 1.25))],
        "quarter of the rate": [run(1, 0.1, 0.2, name="likelihood", losses=(2.5, 2.0))],
    }
    assert lines(runs) == ["| SST2 | 300, 200 | 2.500 | 1.500 | 1.250 (80 steps) | -0.250 | 12 |"]
