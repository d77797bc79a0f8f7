"""The table of public tasks says what its runs came to, and leaves out what failed."""

import re
import tomllib
from pathlib import Path
from typing import Any

import page_tasks
import tasks


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


def test_what_make_measures_are_ways_that_there_are_and_the_page_shows() -> None:
    recipe = (Path(__file__).parents[2] / "Makefile").read_text().partition("\nbench-tasks:")[2].partition("\n\n")[0]
    named = {word for line in recipe.splitlines() for word in re.findall(r'"([^"]+)"', line)}
    shown = tuple(begin for begins in page_tasks.KINDS.values() for begin in begins)
    assert len(named) > 5
    assert named <= tasks.WAYS.keys()
    assert all(way in page_tasks.KINDS or way.startswith(shown) for way in tasks.WAYS)


def test_every_other_setting_of_the_default_finds_prompts_as_the_default_read_them() -> None:
    """A spill folder is told what is trained only by its policy, so that nothing may share it which reads prompts otherwise."""
    assert not tasks._reads_alike(tasks.WAYS["default"]), "the default is measured untouched"
    alike = {way for way, sets in tasks.WAYS.items() if tasks._reads_alike(sets)}
    assert alike == {way for way in tasks.WAYS if way != "default" and way.startswith(page_tasks.KINDS["default"])}


def test_the_reviews_of_the_demo_are_a_task() -> None:
    (reviews,) = (task for task in tasks.TASKS if task.folder == "reviews")
    section = tasks.sections(reviews, Path("nowhere"), Path("nowhere"))
    assert section is not None
    demo = tomllib.loads((tasks.EXAMPLES.parent / "reviews.toml").read_text())["task"]
    names = ("train", "eval")
    assert [Path(section.pop(name)).name for name in names] == [Path(demo.pop(name)).name for name in names]
    assert section == demo
    assert len(tasks.hashes(reviews.files(Path("nowhere")))) == 2
