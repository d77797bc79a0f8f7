"""The training loop: journal first, then update; a run that is interrupted anywhere continues to the same bits."""

import math
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from twinpass.core import Probe, Rollback
from twinpass.engine.base import Engine
from twinpass.errors import DivergedError
from twinpass.estimate.base import Estimator
from twinpass.objective.base import Objective
from twinpass.perturb.noise import derive_seed
from twinpass.report.listener import Listener
from twinpass.schedule.epsilon import Epsilon
from twinpass.task.template import Example
from twinpass.train.batches import batch
from twinpass.train.evaluate import blocks, evaluate
from twinpass.train.journal import History, Journal, step_record
from twinpass.train.optimizer import Sgd
from twinpass.train.step import apply, measure


@dataclass(frozen=True)
class Plan:
    """Everything that decides a run's course, besides the engine's weights."""

    estimator: Estimator
    objective: Objective
    epsilon: Epsilon
    optimizer: Sgd
    train: Sequence[Example]
    held_out: Sequence[Example]
    seed: int = 0
    eval_every: int = 0
    block_at: Callable[[int], int | None] = lambda step: None


@dataclass
class Trainer:
    """Runs a plan on an engine, writing a journal.

    Args:
        engine: at ``theta_0``; the trainer brings it to where ``history`` stands.
        journal: open for appending.
        history: what the journal already holds.
    """

    engine: Engine
    plan: Plan
    journal: Journal
    history: History = field(default_factory=History)
    listener: Listener = field(default_factory=Listener)
    clock: Callable[[], float] = time.perf_counter

    def run(self) -> History:
        """Train to the last step.

        Raises:
            DivergedError: the run diverged more often than the optimizer allows.
        """
        steps = self.plan.optimizer.steps
        self.engine.update(self.history.terms())
        self._warm()
        self.listener.started(steps, len(self.history.steps))
        while True:
            done = len(self.history.steps)
            if rollback := self.plan.optimizer.guard.check(self.history):
                self._roll_back(rollback)
            elif self._evaluation_due(done):
                self._evaluate(done)
            elif done < steps:
                self._step(done)
            else:
                return self.history

    def _warm(self) -> None:
        """Let a resumed run's engine see again what it scored, in the same batches, as far as that still holds."""
        plan, events = self.plan, self.history.events if self.engine.keeps else []
        since: list[set[int | None]] = [set()]
        for event in reversed(events):
            block = None if event.kind == "rollback" else plan.block_at(event.step)
            since.append(since[-1] | ({block} if event.kind != "evaluation" else set()))
        for done, event in enumerate(events, 1):
            after = since[len(events) - done + 1]
            if event.kind == "draw":
                self._warm_one(self._batch(event.draw), self._probes(event.step, event.draw), after)
            elif event.kind == "evaluation":
                for examples in blocks(plan.held_out):
                    self._warm_one(examples, [], after)
            self.listener.warming(done, len(events))

    def _warm_one(self, examples: Sequence[Example], probes: Sequence[Probe], since: Set[int | None]) -> None:
        self.engine.warm(self.plan.objective.requests(examples), probes, since)

    def _probes(self, step: int, draw: int) -> list[Probe]:
        plan = self.plan
        block = plan.block_at(step)
        return [Probe(derive_seed(plan.seed, "probe", draw, k), block) for k in range(plan.estimator.probes)]

    def _batch(self, draw: int) -> list[Example]:
        plan = self.plan
        return batch(plan.train, plan.optimizer.batch_size, plan.seed, draw)

    def _evaluation_due(self, done: int) -> bool:
        plan = self.plan
        if not plan.held_out or done in self.history.evaluations:
            return False
        return done in (0, plan.optimizer.steps) or (plan.eval_every > 0 and done % plan.eval_every == 0)

    def _evaluate(self, done: int) -> None:
        start, plan = self.clock(), self.plan
        total = len(plan.held_out)
        evaluation = evaluate(self.engine, plan.objective, plan.held_out, lambda n: self.listener.evaluating(n, total))
        self._record({"kind": "evaluation", "step": done, "metric": evaluation.metric})
        self.listener.evaluated(done, evaluation, self.clock() - start)

    def _step(self, step: int) -> None:
        start, plan, draw = self.clock(), self.plan, self.history.draws
        report = measure(
            self.engine,
            plan.estimator,
            plan.objective,
            lambda gradients: plan.optimizer.clipping(gradients, self.history),
            step=step,
            examples=self._batch(draw),
            probes=self._probes(step, draw),
            eps=self.engine.effective_eps(plan.epsilon.at(step)),
            lr=plan.optimizer.lr_at(step) * self.history.lr_scale,
        )
        if not all(math.isfinite(loss) for pair in report.estimate.losses for loss in pair):
            self._roll_back(plan.optimizer.guard.not_finite(self.history), discarded=1)
            return
        self._record(step_record(report))
        apply(self.engine, report)
        self.listener.stepped(report, self.clock() - start)

    def _roll_back(self, rollback: Rollback, discarded: int = 0) -> None:
        optimizer, before = self.plan.optimizer, len(self.history.steps)
        if self.history.rollbacks >= optimizer.guard_rollbacks:
            raise DivergedError(
                f"step {before}: {rollback.reason}, after {self.history.rollbacks} rollbacks; "
                f"lower optimizer.lr (now {optimizer.lr:g}, slowed down to {optimizer.lr * self.history.lr_scale:g})"
            )
        scale = self.history.lr_scale * optimizer.guard_lr
        record = {"kind": "rollback", "to": rollback.to, "lr_scale": scale, "discarded": discarded}
        self._record({**record, "reason": rollback.reason})
        self.engine.reset()
        self.engine.update(self.history.terms())
        self.listener.rolled_back(before, rollback, scale)

    def _record(self, record: dict[str, Any]) -> None:
        self.journal.append(record)
        self.history.fold(record)
