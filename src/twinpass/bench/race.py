"""Accuracy against seconds: twinpass, plain MeZO and first-order LoRA on the same data, one after another."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from twinpass.bench.naive import NaiveMezo
from twinpass.bench.own import multiplies_lower
from twinpass.bench.peak import COVERS, peaks
from twinpass.bench.rivals import first_order, naive
from twinpass.config.compose import build_embedded
from twinpass.config.schema import Config
from twinpass.core import Evaluation, StepReport
from twinpass.report.interval import wilson
from twinpass.report.listener import Listener
from twinpass.reuse.activated import Activated
from twinpass.schedule.epsilon import Known
from twinpass.task.example import Example
from twinpass.train.batches import batch
from twinpass.train.folder import header
from twinpass.train.journal import Journal
from twinpass.train.trainer import Plan, Trainer

Told = Callable[[str, int, float, float], None]
"""Method, step, seconds of training, accuracy."""

BLOCK = 16
"""Held-out examples that rivals score at a time."""


class Finished(Exception):  # noqa: N818
    """The target is reached, or time is up."""


@dataclass
class Course:
    """One method's way: evaluations at seconds of training, until one reaches the target or time is up."""

    method: str
    target: float
    limit: float
    told: Told
    points: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, step: int, accuracy: float, examples: int) -> None:
        """Take in an evaluation.

        Raises:
            Finished: it was the last.
        """
        low, high = wilson(accuracy, examples)
        self.points.append({"step": step, "seconds": self.seconds, "accuracy": accuracy, "low": low, "high": high})
        self.told(self.method, step, self.seconds, accuracy)
        if accuracy >= self.target or self.seconds >= self.limit:
            raise Finished

    def result(self) -> dict[str, Any]:
        """The course, and when it reached the target."""
        reached = next((point["seconds"] for point in self.points if point["accuracy"] >= self.target), None)
        return {"course": self.points, "seconds_to_target": reached}


class _Watch(Listener):
    """Puts a run's evaluations on a course."""

    def __init__(self, course: Course) -> None:
        self._course = course

    def stepped(self, report: StepReport, seconds: float) -> None:
        self._course.seconds += seconds

    def evaluated(self, step: int, evaluation: Evaluation, seconds: float) -> None:
        self._course.add(step, evaluation.metric, evaluation.examples)


def race(config: Config, target: float, limit: float, every: Mapping[str, int], told: Told) -> dict[str, Any]:
    """Every method from the base model until an evaluation reaches ``target``, or ``limit`` seconds of training are over.

    Args:
        every: steps between evaluations, by method; evaluations are not counted as training.

    Keys and values on disk (``reuse.spill``) are those of this race alone: it begins with an empty folder.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _race(_spilling_to(config, folder), target, limit, every, told)


def _spilling_to(config: Config, folder: str) -> Config:
    if not isinstance(config.reuse, Activated) or config.reuse.spill is None:
        return config
    values = {**config.values, "reuse": {**config.values["reuse"], "spill": folder}}
    return replace(config, reuse=replace(config.reuse, spill=folder), values=values)


def _race(config: Config, target: float, limit: float, every: Mapping[str, int], told: Told) -> dict[str, Any]:
    methods = {name: method for name, method in METHODS.items() if name != LOWER or multiplies_lower(config)}
    results = {}
    for name, method in methods.items():
        course = Course(name, target, limit, told)
        with suppress(Finished):
            method.run(config, course, every[name])
        results[name] = course.result()
    memory = peaks(config, (*(method.peak for method in methods.values()), "inference"))
    for name, method in methods.items():
        results[name]["peak_rss_bytes"] = memory[method.peak]
    return {
        "target": target,
        "limit_seconds": limit,
        "methods": results,
        "peak_covers": COVERS,
        "inference_peak_rss_bytes": memory["inference"],
    }


def _ours(config: Config, course: Course, every: int) -> None:
    session = build_embedded(config)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal.create(Path(folder) / "journal.jsonl", header(config.values, session.engine))
        plan = replace(session.plan, eval_every=every)
        try:
            Trainer(session.engine, plan, journal, listener=_Watch(course)).run()
        finally:
            journal.close()


def _naive(config: Config, course: Course, every: int) -> None:
    plan, rival = build_embedded(config).plan, naive(config)
    eps = plan.epsilon.at(0, Known())

    def step(number: int, examples: Sequence[Example]) -> None:
        rival.step(examples, number, eps, plan.optimizer.lr_at(number))

    _loop(plan, rival, course, every, step)


def _first_order(config: Config, course: Course, every: int, *, low: bool = False) -> None:
    plan, rival = build_embedded(config).plan, first_order(config, low=low)
    scorer = NaiveMezo(rival.model, [], plan.objective)
    _loop(plan, scorer, course, every, lambda number, examples: rival.step(examples))


@dataclass(frozen=True)
class Method:
    """How a method runs, and what :mod:`twinpass.bench.peak` calls it."""

    run: Callable[[Config, Course, int], None]
    peak: str


LOWER = "first-order-bfloat16"
METHODS: Mapping[str, Method] = {
    "twinpass": Method(_ours, "ours"),
    "naive": Method(_naive, "naive"),
    "first-order": Method(_first_order, "first_order"),
    LOWER: Method(partial(_first_order, low=True), "first_order_bfloat16"),
}
"""By name; the last only where products of ours are in bfloat16, too."""


def _loop(
    plan: Plan, scorer: NaiveMezo, course: Course, every: int, step: Callable[[int, Sequence[Example]], Any]
) -> None:
    for number in range(plan.optimizer.steps + 1):
        if number % every == 0 or number == plan.optimizer.steps:
            course.add(number, _accuracy(scorer, plan.held_out), len(plan.held_out))
        examples = batch(plan.train, plan.optimizer.batch_size, plan.seed, number)
        started = time.perf_counter()
        step(number, examples)
        course.seconds += time.perf_counter() - started


def _accuracy(scorer: NaiveMezo, examples: Sequence[Example]) -> float:
    scorer.model.train(False)
    ordered = sorted(examples, key=lambda example: len(example.prompt))
    parts = [ordered[i : i + BLOCK] for i in range(0, len(ordered), BLOCK)]
    return sum(scorer.metric(part) * len(part) for part in parts) / len(ordered)
