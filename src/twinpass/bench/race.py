"""Accuracy, or nats, against seconds: twinpass and what users would take instead, on the same data, one after another."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from twinpass.bench.naive import NaiveMezo
from twinpass.bench.own import multiplies_lower
from twinpass.bench.peak import COVERS, peaks
from twinpass.bench.probe import seconds_of
from twinpass.bench.rivals import exact, fed_back, first_order, informed, linear_probe, mezo_lr, naive
from twinpass.config.compose import build_embedded
from twinpass.config.schema import Config
from twinpass.core import Evaluation, StepReport
from twinpass.errors import ConfigError
from twinpass.objective.base import scored
from twinpass.report.interval import wilson
from twinpass.report.listener import Listener
from twinpass.reuse.activated import ActivatedReuse
from twinpass.schedule.epsilon import Known
from twinpass.task.example import Example
from twinpass.train.batches import batch
from twinpass.train.folder import RunFolder
from twinpass.train.header import header
from twinpass.train.journal import Journal
from twinpass.train.plan import TrainingPlan
from twinpass.train.trainer import Trainer

Told = Callable[[str, int, float, float], None]
"""Method, step, seconds of training, accuracy or nats."""

BLOCK = 16
"""Held-out examples that rivals score at a time."""


class Finished(Exception):  # noqa: N818
    """The target is reached, or time is up."""


LEVELS = (0.70, 0.80, 0.85, 0.87, 0.90)
"""Accuracies whose seconds are reported, as far as they are no more than the target."""


@dataclass
class Timeline:
    """One method's way: evaluations at seconds of training, until one reaches the target or time is up.

    With ``nats`` the target is a held-out loss, and less is better; an accuracy otherwise.
    """

    method: str
    target: float
    limit: float
    told: Told
    nats: bool = False
    points: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    forwards: float | None = None

    def add(self, step: int, value: float, examples: int) -> None:
        """Take in an evaluation.

        Raises:
            Finished: it was the last.
        """
        point = {"step": step, "seconds": self.seconds}
        if self.nats:
            self.points.append({**point, "nats": value})
        else:
            low, high = wilson(value, examples)
            self.points.append({**point, "accuracy": value, "low": low, "high": high})
        self.told(self.method, step, self.seconds, value)
        if self._reaches(value, self.target) or self.seconds >= self.limit:
            raise Finished

    def result(self) -> dict[str, Any]:
        """The course, and when it reached the target and the levels below."""
        levels = [] if self.nats else [level for level in LEVELS if level <= self.target]
        return {
            "course": self.points,
            "seconds_to_target": self._seconds_to(self.target),
            "seconds_to": {f"{level:.2f}": self._seconds_to(level) for level in levels},
            "forwards": self.forwards,
        }

    def _reaches(self, value: float, level: float) -> bool:
        return value <= level if self.nats else value >= level

    def _seconds_to(self, level: float) -> float | None:
        key = "nats" if self.nats else "accuracy"
        return next((point["seconds"] for point in self.points if self._reaches(point[key], level)), None)


class _Watch(Listener):
    """Puts a run's evaluations on a timeline. Forwards are token-layers over those of one row's own pass through the model."""

    def __init__(self, timeline: Timeline, pass_layers: float) -> None:
        self._timeline, self._pass = timeline, pass_layers

    def stepped(self, report: StepReport, seconds: float) -> None:
        self._timeline.seconds += seconds
        self._timeline.forwards = (self._timeline.forwards or 0.0) + report.work.computed / self._pass

    def evaluated(self, step: int, evaluation: Evaluation, seconds: float) -> None:
        self._timeline.add(step, evaluation.loss if self._timeline.nats else evaluation.metric, evaluation.examples)


def race(
    config: Config, target: float, limit: float, every: Mapping[str, int], told: Told, methods: Sequence[str] = ()
) -> dict[str, Any]:
    """Every method from the base model until an evaluation reaches ``target``, or ``limit`` seconds of training are over.

    Args:
        target: an accuracy, or nats where the task is to write texts.
        every: steps between evaluations, by method; evaluations are not counted as training.
        methods: those of :data:`METHODS` that run; none: all that suit the task.

    Keys and values on disk (``reuse.spill``) are those of this race alone: each method begins with an empty folder. What evaluations
    leave in the cache is of held-out rows, and of no use to training.
    """
    if config.optimizer.schedule == "plateau":
        raise ConfigError(
            config.source,
            [
                '[optimizer] schedule: a race has a clock of its own for evaluations, which "plateau" would go by; set "linear"'
            ],
        )
    return _race(config, target, limit, every, told, methods or suiting(config))


def suiting(config: Config) -> list[str]:
    """The methods that have a meaning for a configuration."""
    found = [name for name in METHODS if name != LOWER or multiplies_lower(config)]
    return found if config.task.chooses else [name for name in found if name not in CHOOSING]


def _spilling_to(config: Config, folder: str) -> Config:
    if not isinstance(config.reuse, ActivatedReuse) or config.reuse.spill is None:
        return config
    values = {**config.values, "reuse": {**config.values["reuse"], "spill": folder}}
    return replace(config, reuse=replace(config.reuse, spill=folder), values=values)


def _race(
    config: Config, target: float, limit: float, every: Mapping[str, int], told: Told, names: Sequence[str]
) -> dict[str, Any]:
    results = {}
    for name in names:
        timeline = Timeline(name, target, limit, told, nats=not config.task.chooses)
        with tempfile.TemporaryDirectory() as folder, suppress(Finished):
            METHODS[name].run(_spilling_to(config, folder), timeline, every[name])
        results[name] = timeline.result()
    with tempfile.TemporaryDirectory() as folder:
        memory = peaks(_spilling_to(config, folder), (*(METHODS[name].peak for name in names), "inference"))
    for name in names:
        results[name]["peak_rss_bytes"] = memory[METHODS[name].peak]
    return {
        "target": target,
        "limit_seconds": limit,
        "methods": results,
        "peak_covers": COVERS,
        "inference_peak_rss_bytes": memory["inference"],
    }


def _ours(
    config: Config, timeline: Timeline, every: int, of: Callable[[Config], Config] = lambda config: config
) -> None:
    chosen = of(config)
    session = build_embedded(chosen)
    plan = replace(session.plan, eval_every=every)
    rows = [len(request.inputs) for example in plan.train for request in scored(plan.objective).requests([example])[:1]]
    watch = _Watch(timeline, session.engine.layers * sum(rows) / len(rows))
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        journal = Journal.create(run.journal, header(chosen.values, session.engine))
        try:
            Trainer(session.engine, plan, journal, listener=watch).run()
        finally:
            journal.close()


def _naive(config: Config, timeline: Timeline, every: int, *, lean: bool = False) -> None:
    plan = build_embedded(config).plan
    rival = naive(config, scored(plan.objective), lean=lean)
    eps, share = plan.epsilon.at(0, Known()), mezo_lr(config) / plan.optimizer.lr

    def step(number: int, examples: Sequence[Example]) -> None:
        rival.step(examples, number, eps, share * plan.optimizer.lr_at(number))

    _loop(plan, rival, timeline, every, step, 2 * (_sequences(plan) if lean else _options(plan)))


def _first_order(config: Config, timeline: Timeline, every: int, *, low: bool = False) -> None:
    plan = build_embedded(config).plan
    rival = first_order(config, scored(plan.objective), low=low)
    scorer = NaiveMezo(rival.model, [], scored(plan.objective), lean=True)
    _loop(plan, scorer, timeline, every, lambda number, examples: rival.step(examples), 3 * _sequences(plan))


def _linear_probe(config: Config, timeline: Timeline, every: int) -> None:
    """A probe of a sixteenth, of a quarter and of all training rows; the first point is chance."""
    plan, probe = build_embedded(config).plan, linear_probe(config)
    timeline.add(0, 1 / len(plan.held_out[0].options), len(plan.held_out))
    held_out = probe.states(plan.held_out)
    labels = torch.tensor([example.label for example in plan.held_out])
    for share in (16, 4, 1):
        rows = plan.train[: max(every, len(plan.train) // share)]
        fitted, timeline.seconds = seconds_of(probe, rows)
        timeline.forwards = float(len(rows))
        timeline.add(len(rows), fitted.accuracy(held_out, labels), len(plan.held_out))


def _options(plan: TrainingPlan) -> float:
    return sum(len(example.options) for example in plan.train) / len(plan.train)


def _sequences(plan: TrainingPlan) -> float:
    """Distinct inputs a row: options of one token have one between them."""
    rows = [scored(plan.objective).requests([example]) for example in plan.train]
    return sum(len({request.inputs for request in requests}) for requests in rows) / len(rows)


@dataclass(frozen=True)
class Entrant:
    """How a method runs, and what :mod:`twinpass.bench.peak` calls it."""

    run: Callable[[Config, Timeline, int], None]
    peak: str


LOWER = "first-order-bfloat16"
METHODS: Mapping[str, Entrant] = {
    "linear-probe": Entrant(_linear_probe, "probe"),
    "informed": Entrant(partial(_ours, of=informed), "informed"),
    "backprop": Entrant(partial(_ours, of=exact), "exact"),
    "feedback": Entrant(partial(_ours, of=fed_back), "fed_back"),
    "twinpass": Entrant(_ours, "ours"),
    "first-order": Entrant(_first_order, "first_order"),
    LOWER: Entrant(partial(_first_order, low=True), "first_order_bfloat16"),
    "lean": Entrant(partial(_naive, lean=True), "lean"),
    "naive": Entrant(_naive, "naive"),
}
"""By name: the first needs options, and one is only there where products of ours are in bfloat16, too.

``informed``, ``backprop`` and ``feedback`` are twinpass's with other settings (:mod:`twinpass.bench.rivals`), ``twinpass`` the configuration's own.
"""

CHOOSING = ("linear-probe",)


def _loop(
    plan: TrainingPlan,
    scorer: NaiveMezo,
    timeline: Timeline,
    every: int,
    step: Callable[[int, Sequence[Example]], Any],
    passes: float,
) -> None:
    """``passes``: how many forward passes a row takes, a backward pass counted as two."""
    evaluator = NaiveMezo(scorer.model, [], scored(plan.objective), lean=True)
    for number in range(plan.optimizer.steps + 1):
        if number % every == 0 or number == plan.optimizer.steps:
            timeline.add(number, _measured(evaluator, plan.held_out, nats=timeline.nats), len(plan.held_out))
        examples = batch(plan.train, plan.optimizer.batch_size, plan.seed, number)
        started = time.perf_counter()
        step(number, examples)
        timeline.seconds += time.perf_counter() - started
        timeline.forwards = (timeline.forwards or 0.0) + passes * len(examples)


def _measured(scorer: NaiveMezo, examples: Sequence[Example], *, nats: bool) -> float:
    scorer.model.train(False)
    ordered = sorted(examples, key=lambda example: len(example.prompt))
    parts = [ordered[i : i + BLOCK] for i in range(0, len(ordered), BLOCK)]
    measure = scorer.loss if nats else scorer.metric
    return sum(measure(part) * len(part) for part in parts) / len(ordered)
