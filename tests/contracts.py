"""What every kind of a family has to keep, whoever wrote it: one function a family, called with one row of its table."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import LANES, REQUESTS, build
from numpy.typing import NDArray
from planning import EPS, TWO, report, situation

from twinpass.config.tasks import TaskSettings
from twinpass.core import BASE, Estimate, Lane, Probe, Request, Score, StepReport, Term
from twinpass.engine.base import Engine
from twinpass.errors import ModelError
from twinpass.estimate.base import Estimator
from twinpass.estimate.one_sided import OneSided
from twinpass.estimate.spsa import Spsa
from twinpass.model.trainable import Trainable
from twinpass.objective.base import Objective
from twinpass.reuse.base import Circumstances, Policy, Trains
from twinpass.schedule.epsilon import Epsilon, Known
from twinpass.task.example import Example
from twinpass.task.named.base import NamedTask
from twinpass.task.rows import Row
from twinpass.task.sources.read import read, sound
from twinpass.train.history import History
from twinpass.train.optimizer import Optimizer
from twinpass.train.records import step_record

# --- estimators

THETA = np.linspace(-0.5, 0.7, 6)
SCALES = (1e-1, 3e-2, 1e-2)
AGREES = 1e-6


def loss_at(theta: NDArray[np.float64]) -> float:
    """A smooth loss with derivatives of every order."""
    return float(np.exp(theta).sum() + np.cos(3.0 * theta[0] * theta[1]) + theta @ theta[::-1])


def slopes_at(theta: NDArray[np.float64]) -> NDArray[np.float64]:
    """Its gradient."""
    gradient = np.exp(theta) + 2.0 * theta[::-1]
    gradient[:2] -= 3.0 * theta[1::-1] * math.sin(3.0 * theta[0] * theta[1])
    return gradient


def direction(probe: Probe) -> NDArray[np.float64]:
    """z of a probe."""
    return np.random.default_rng(probe.seed).standard_normal(THETA.size)


def loss_of(lane: Lane) -> float:
    """The loss under a lane, which a linear one takes to first order."""
    if lane.probe is None:
        return loss_at(THETA)
    moved = lane.scale * direction(lane.probe)
    return loss_at(THETA) + float(moved @ slopes_at(THETA)) if lane.linear else loss_at(THETA + moved)


def estimator_contract(estimator: Estimator) -> None:
    """Lanes depend on probes and eps alone, and the error of g falls as ``bias_order`` says, or is none at any eps."""
    assert estimator.curved == (type(estimator).refine is not Estimator.refine), "only scores tell of curvature"
    if estimator.whole:
        assert estimator.differentiates
        assert estimator.lanes([], 1e-3) == [BASE]
        assert estimator.estimate([], 1e-3, [0.5]) == Estimate((), 1e-3, ((0.5, 0.5),), ())
        return
    probes = [Probe(seed) for seed in range(11, 11 + estimator.probes)]
    truth = np.array([direction(probe) @ slopes_at(THETA) for probe in probes])
    errors = []
    for eps in SCALES:
        lanes = estimator.lanes(probes, eps)
        assert lanes == estimator.lanes(probes, eps)
        assert {lane.probe for lane in lanes} - {None} == set(probes)
        assert all(lane.linear == estimator.differentiates for lane in lanes if lane.probe)
        signs = {lane.sign for lane in lanes}
        assert signs - {0} == {1, -1} or not estimator.two_sided
        estimate = estimator.estimate(probes, eps, [loss_of(lane) for lane in lanes])
        assert (estimate.probes, estimate.eps) == (tuple(probes), eps)
        assert estimator.curved or bool(estimate.preconditioned) == estimator.measures_length
        assert len(estimate.losses) == len(estimate.gradients) == len(probes)
        errors.append(float(np.abs(np.array(estimate.gradients) - truth).max()))
    if estimator.differentiates:
        assert max(errors) < AGREES
    else:
        slope = np.polyfit(np.log(SCALES), np.log(errors), 1)[0]
        assert slope == pytest.approx(estimator.bias_order, abs=0.2)


# --- optimizers


def optimizer_contract(optimizer: Optimizer) -> None:
    """Lengths are a pure function of the estimate and the steps in force, downhill, and as long at any scale just if they say so."""
    rows = np.random.default_rng(5).standard_normal((8, 3))

    def estimate(row: Sequence[float], scale: float = 1.0) -> Estimate:
        probes = tuple(Probe(seed) for seed in range(len(row)))
        return Estimate(probes, 1e-2, ((1.0, 1.0),) * len(row), tuple(scale * float(g) for g in row))

    def history(count: int, scale: float = 1.0) -> History:
        reports = (StepReport(i, estimate(rows[i], scale), (0.0,) * 3, 1e-3) for i in range(count))
        return History.of([step_record(report) for report in reports])

    kept = history(7)
    last = estimate((*rows[7][:2], 0.0))
    found = optimizer.lengths(last, kept)
    assert found == optimizer.lengths(last, kept) == optimizer.lengths(last, history(7))
    kept.fold({"kind": "rollback", "to": 2, "lr_scale": 0.5, "discarded": 0})
    assert optimizer.lengths(last, kept) == optimizer.lengths(last, history(2))
    assert [np.sign(length) for length in found] == [np.sign(g) for g in last.gradients]
    tenfold = optimizer.lengths(estimate(last.gradients, 10.0), history(7, 10.0))
    assert (tenfold == pytest.approx(found)) == optimizer.scale_free
    assert all(0 <= optimizer.lr_at(step) <= optimizer.lr for step in range(optimizer.steps))


# --- policies

HISTORIES: Sequence[Sequence[StepReport]] = (
    (),
    (report((0.1, 0.2, 0.3), age=0, exact=(1.0,)),),
    (report((0.1, 0.2, 9.0), age=40),),
)
MODELS = [
    Trains(3, first, activated, varies) for first, activated, varies in product((0, 2), (False, True), (False, True))
]


def policy_contract(policy: Policy) -> None:
    """A pure function of lanes and situation, whose lanes are the estimator's own in their order, and which says where it does not fit."""
    assert hash(policy) == hash(copy(policy))
    assert policy == copy(policy)
    assert policy.bias_order is None or policy.approximate, "an exact policy has no bias"
    for facts in product((False, True), (False, True, None), (1, 2), (False, True), (False, True), (False, True)):
        assert all(isinstance(problem, str) and problem for problem in policy.objections(Circumstances(*facts)))
    fitting = []
    for trains in MODELS:
        with suppress(ValueError):  # where it does not fit
            fitting.append(policy.sharing(trains))
    assert fitting, "there is something that it is for"
    assert not policy.approximate or not any(fitting), "what is shared exactly is not approximated"
    planner = policy.planner()
    for estimator, steps, coin in product((Spsa(1), Spsa(2), OneSided(2)), HISTORIES, (0.0, 0.5, 0.99)):
        lanes, where = estimator.lanes(TWO[: estimator.probes], EPS), situation(*steps, coin=coin)
        plan = planner.plan(lanes, where)
        assert plan == policy.planner().plan(lanes, where), "a resumed run plans as the first did"
        assert [lane.exact for lane in plan.lanes] == lanes
        assert set(plan.twins) <= set(lanes)
        assert (plan.spans is None) == all(lane.prefix == "own" for lane in plan.lanes)
        assert plan.spans is None or policy.approximate
        share = planner.accepted(EPS, where)
        assert share is None or 0.0 <= share <= 1.0


# --- schedules of eps


def schedule_contract(schedule: Epsilon) -> None:
    """Eps is positive and finite, and the same when asked again; so is each that it tries."""
    for steps in HISTORIES:
        known = Known(steps)
        for step in range(20):
            eps = schedule.at(step, known)
            assert math.isfinite(eps)
            assert eps > 0
            assert schedule.at(step, known) == eps
            trials = schedule.trials(step, eps, known)
            assert all(math.isfinite(trial) and trial > 0 for trial in trials)
            assert not trials or schedule.measures


# --- objectives

OPTIONS = ((1,), (2, 3), (4,))


def examples_of(objective: Objective) -> list[Example]:
    """Examples that it can read, with another right answer each."""
    several = [Example((5, 6), OPTIONS, label, 1) for label in range(3)]
    return several if objective.compares else [*several, Example((7,), OPTIONS[1:2], 0, 0)]


def scores_of(requests: Sequence[Request]) -> list[Score]:
    """Some log-probabilities."""
    generator = np.random.default_rng(3)
    return [-generator.random(len(request.completion)) for request in requests]


def objective_contract(objective: Objective) -> None:
    """Loss and metric of a batch are means over its examples, finite, and get better as right answers get likelier.

    A gradient, if it has one, is the loss's derivative; a loss without one may stay as it is.
    """
    assert objective.metric_name
    examples = examples_of(objective)
    requests = objective.requests(examples)
    assert requests == [request for example in examples for request in objective.requests([example])]
    scores = scores_of(requests)
    single: list[tuple[float, float]] = []
    at = 0
    for example in examples:
        own = scores[at : at + len(objective.requests([example]))]
        at += len(own)
        single.append((objective.loss([example], own), objective.metric([example], own)))
    loss, metric = objective.loss(examples, scores), objective.metric(examples, scores)
    assert (loss, metric) == pytest.approx(tuple(np.mean(single, axis=0)))
    assert math.isfinite(loss)
    assert math.isfinite(metric)
    with suppress(ModelError):
        slopes = objective.gradient(examples, scores)
        for i, slope in enumerate(slopes):
            step = 1e-5 * np.cos(np.arange(len(slope)) + 1.0)
            moved = [[*scores[:i], scores[i] + sign * step, *scores[i + 1 :]] for sign in (1, -1)]
            plus, minus = (objective.loss(examples, own) for own in moved)
            assert float(slope @ step) == pytest.approx((plus - minus) / 2, abs=1e-12)
    right = {(example.prompt, example.options[example.label]) for example in examples}
    for example in examples:
        own = scores_of(asked := objective.requests([example]))
        better = [
            score + 0.05
            if (request.prompt, request.completion) in right and request.completion == example.options[example.label]
            else score
            for request, score in zip(asked, own, strict=True)
        ]
        after, before = objective.loss([example], better), objective.loss([example], own)
        assert after < before if objective.differentiable else after <= before
        assert objective.metric([example], better) >= objective.metric([example], own)


# --- tasks


def task_contract(task: TaskSettings, rows: Sequence[Row], tokenizer: Any) -> None:
    """Every row becomes examples that can be scored, the same each time."""
    template = task.reading(rows).template
    examples = template.encode(rows, tokenizer)
    assert examples == template.encode(rows, tokenizer)
    assert examples
    for example in examples:
        assert example.place
        assert 0 <= example.suffix_start <= len(example.prompt)
        assert example.prompt
        assert all(example.options)
        assert task.writes or 0 <= example.label < len(example.options)
        assert len(example.options) > 1 or not template.chooses


def named_task_contract(task: NamedTask, folder: Path) -> None:
    """Its files in ``folder`` are found and read, and every row can be asked, answered, and read once more as it is."""
    assert task.train_files
    assert not set(task.train_files) & set(task.eval_files)
    template = task.template
    assert template == task.template
    assert hash(template) == hash(task.template)
    assert task.ends_alike == bool(template.suffix)
    files = [folder / name for name in (*task.train_files, *task.eval_files) if (folder / name).exists()]
    assert {file.name for file in files} & set(task.train_files)
    rows = sound(read([str(file) for file in files], "rows", None, task.reader, task.within))
    assert rows
    places = [row.place for row in rows]
    assert len(set(places)) == len(places)
    for row in rows:
        assert str(folder) in row.place
        assert list(task.within(row)) == [row]
        answers, right = template.answers(row)
        assert 0 <= right < len(answers)
        prompt = template.prompt_of(row)
        assert prompt.endswith(template.suffix)
        assert all(answer[:1].isspace() or prompt[-1].isspace() for answer in answers), (
            "no answer melts into the prompt"
        )


# --- trainables


def trainable_contract(trainable: Trainable) -> None:
    """The same tensors from the same seed; an adapter leaves the model as it is, and begins at it."""
    found = []
    for _ in range(2):
        model = build("llama", torch.float32)
        before = {name: tensor.clone() for name, tensor in model.named_parameters()}
        trained = trainable.attach(model, 3, (1,))
        assert trained.parameters.numel > 0
        assert (trained.adapter is not None) == trainable.adapter
        assert trained.activated == trainable.activated
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())
        own = {tensor.data_ptr() for tensor in model.parameters()}
        assert all((tensor.data_ptr() in own) != trainable.adapter for tensor in trained.parameters.values())
        found.append({name: tensor.clone() for name, tensor in trained.parameters.items()})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert all(trainable.block_at(step) == trainable.block_at(step) for step in range(6))
    suited = trainable.defaults
    assert min(suited.eps, suited.lr, suited.steps, suited.batch_size) > 0


# --- engines


def engine_contract(
    engine: Engine, requests: Sequence[Request] = REQUESTS, lanes: Sequence[Lane] = LANES, near: float = 1e-5
) -> None:
    """Scores are those of weights ``theta + scale z``: scoring changes nothing, an update moves the base lane there, a reset comes back."""
    assert len(engine.base_hash) >= 16
    assert min(engine.trained, engine.layers, engine.resolution, engine.effective_eps(1e-2)) > 0
    own = [BASE, *(replace(lane, eps=engine.effective_eps(lane.eps)) for lane in lanes if lane.sign)]
    before = engine.score(requests, own)
    assert [len(values) for values in before.values] == [len(requests)] * len(own)
    shapes = [(len(request.completion),) for request in requests]
    assert all([score.shape for score in values] == shapes for values in before.values)
    assert 0 < before.work.computed <= before.work.demand
    assert worst(before.values, engine.score(requests, own).values) < near
    assert worst(before.values[:1], before.values[1:2]) > 10 * near, "a lane has to differ, or nothing is tested"
    lane = own[1]
    assert lane.probe is not None
    engine.update([Term(lane.probe.seed, lane.scale, lane.probe.block)])
    assert worst(engine.score(requests, [BASE]).values, before.values[1:2]) < near
    engine.reset()
    assert worst(engine.score(requests, [BASE]).values, before.values[:1]) < near


def worst(some: Sequence[Sequence[Score]], others: Sequence[Sequence[Score]]) -> float:
    """The largest difference between scores."""
    return max(float(np.abs(a - b).max()) for x, y in zip(some, others, strict=True) for a, b in zip(x, y, strict=True))


Contract = Callable[..., None]
CONTRACTS: Mapping[str, Contract] = {
    "trainable": trainable_contract,
    "task": task_contract,
    "objective": objective_contract,
    "estimator": estimator_contract,
    "optimizer": optimizer_contract,
    "epsilon": schedule_contract,
    "reuse": policy_contract,
    "engine": engine_contract,
}
"""By section of a configuration."""
