"""The training loop: journal first, then update; a run that is interrupted anywhere continues to the same bits."""

import math
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from twinpass.core import Probe, StepReport
from twinpass.engine.base import Engine
from twinpass.errors import DivergedError, LatticeError
from twinpass.model.space import Observed
from twinpass.model.trainable import Fitting
from twinpass.objective.base import scored
from twinpass.objective.goal import portions
from twinpass.perturb.noise import derive_seed
from twinpass.report.listener import Listener
from twinpass.reuse.plan import LanePlanner, Situation
from twinpass.schedule.epsilon import Known
from twinpass.steps import Rollback
from twinpass.task.example import Example
from twinpass.train.batches import batch
from twinpass.train.descent import GradientSteps, descent_of
from twinpass.train.fitting import answer_tokens, split
from twinpass.train.history import History
from twinpass.train.journal import Journal
from twinpass.train.plan import TrainingPlan
from twinpass.train.records import evaluation_record, step_record
from twinpass.train.safeguards import dead
from twinpass.train.spaces import Spaces, advance
from twinpass.train.step import Draw, Method, apply, measure


@dataclass
class Trainer:
    """Runs a plan on an engine, writing a journal.

    Args:
        engine: at ``theta_0``; the trainer brings it to where ``history`` stands.
        journal: open for appending.
        history: what the journal already holds.
        accepted: what a resumed run finds other than before, for the journal once the run stands where it did.
    """

    engine: Engine
    plan: TrainingPlan
    journal: Journal
    history: History = field(default_factory=History)
    listener: Listener = field(default_factory=Listener)
    clock: Callable[[], float] = time.perf_counter
    accepted: Mapping[str, Any] | None = None
    _descent: GradientSteps | None = None

    def run(self) -> History:
        """Train to the last step.

        It ends earlier once ``plan.max_seconds`` have passed, but not before it has made a step; resumed, it goes on from there. It also
        ends once as many evaluations as ``plan.patience`` (0: any number) came to no more than one before them; under ``plateau`` at the third time.

        Raises:
            DivergedError: the run diverged more often than the optimizer allows, or nothing moves it any more.
        """
        self.plan = plan = self.plan.held(self.engine)
        steps = plan.optimizer.steps
        self._descent = descent_of(self.engine, plan, self.journal.path.parent)
        self._restore()
        if self.accepted is not None:  # now that the run does stand where it did
            self._record(self.accepted)
        self.listener.started(steps, len(self.history.steps))
        began, first = self.clock(), len(self.history.steps)
        while True:
            late = (
                plan.max_seconds is not None
                and len(self.history.steps) != first
                and self.clock() - began >= plan.max_seconds
            )
            try:
                if self._next(late):
                    return self.history
            except LatticeError as error:
                if not self.history.steps:
                    raise
                self._roll_back(plan.optimizer.guard.spoilt(self.history, str(error)))

    def _next(self, late: bool) -> bool:
        """Do what is due next; whether nothing is. ``late``: time is up."""
        plan, done = self.plan, len(self.history.steps)
        if rollback := plan.optimizer.guard.check(
            self.history, likelihood=plan.objective.likelihood, absolute=plan.objective.absolute
        ):
            self._roll_back(rollback)
        elif plan.optimizer.guard_zeros and (why := dead(self.history)):
            raise DivergedError(f"step {done}: {why}")
        elif self._descent is not None and self._descent.due(done, self.history):
            self._record(self._descent.store(done))
            self._descent.thin(self.history)
        elif self._evaluation_due(done, late):
            self._evaluate(done)
        elif done < plan.optimizer.steps and not late and not plan.settled(self.history):
            self._step(done)
        elif not plan.held_out and (fault := self.engine.fault()):
            self._roll_back(plan.optimizer.guard.spoilt(self.history, f"{fault} is no longer finite"))
        else:
            return True
        return False

    def _restore(self) -> None:
        """Bring the engine to where the history stands."""
        carried = self.history.carried_from
        if self._descent is None:
            self._advance(carried)
        self._warm()
        if self._descent is not None:
            self._advance(carried)
        for step in range(carried, len(self.history.steps)):
            self._repeat(step)

    def _warm(self) -> None:
        """Let a resumed run's engine see again what it scored, in the same batches, as far as that still holds."""
        fresh = self._descent is not None and self.plan.objective.teaches
        plan, events = self.plan, self.history.events if self.engine.keeps and not fresh else []
        since: list[set[int | None]] = [set()]
        for event in reversed(events):
            block = None if event.kind == "rollback" else plan.block_at(event.step)
            since.append(since[-1] | ({block} if event.kind != "evaluation" else set()))
        for done, event in enumerate(events, 1):
            after = since[len(events) - done + 1]
            if event.kind == "draw":
                if fitted := self._fitted(event.draw):
                    self._warm_one(fitted, [], after)
                self._warm_one(self._batch(event.draw), self._probes(event.step, event.draw), after)
            elif event.kind == "evaluation":
                for examples in portions(plan.held_out, plan.objective.portion):
                    self._warm_one(examples, [], after)
            self.listener.warming(done, len(events))

    def _advance(self, steps: int) -> None:
        """Bring the engine from ``theta_0`` to where it stood after the first ``steps`` steps."""
        if self._descent is not None:
            self._descent.rebuild(self.history, steps, self.listener.restoring)
        else:
            advance(self.engine, self.history.steps[:steps], self._spaces, self.listener.restoring)

    @property
    def _spaces(self) -> Spaces:
        """Where directions are kept that are fitted to the task: beside the journal that names them."""
        return Spaces.of(self.journal.path.parent)

    def _warm_one(self, examples: Sequence[Example], probes: Sequence[Probe], since: Set[int | None]) -> None:
        self.plan.objective.warm(self.engine, examples, probes, since)

    def _repeat(self, step: int) -> None:
        """Let a resumed run's engine carry again what it had carried: score a step as it was scored, and update."""
        report = self.history.steps[step]
        self._measure(step, self.history.draw_of(step), self.history.steps[:step], report.estimate.eps)
        apply(self.engine, report)

    def _measure(self, step: int, draw: int, before: Sequence[StepReport], eps: float) -> StepReport:
        """Score a step that comes after ``before``."""
        plan, engine = self.plan, self.engine
        known = self._known(before)
        coin = derive_seed(plan.seed, "check", draw) / 2**63
        trials = [engine.effective_eps(trial) for trial in plan.epsilon.trials(step, eps, known)]
        method = Method(
            plan.estimator,
            plan.objective,
            self._planner,
            lambda estimate: plan.optimizer.lengths(estimate, self.history),
        )
        drawn = Draw(
            step,
            self._batch(draw),
            self._probes(step, draw),
            eps,
            plan.lr_at(step, self.history),
            plan.optimizer.decay,
            plan.writing(step, draw),
            trials,
        )
        return measure(engine, method, drawn, Situation(engine.layers, before, coin, trial=bool(trials)))

    @property
    def _planner(self) -> LanePlanner:
        return self.plan.planner if self.engine.takes_spans else LanePlanner()

    def _known(self, before: Sequence[StepReport]) -> Known:
        planner, engine = self._planner, self.engine
        situation = Situation(engine.layers, before)
        return Known(
            before, self.plan.estimator.bias_order, engine.resolution, lambda eps: planner.accepted(eps, situation)
        )

    def _probes(self, step: int, draw: int) -> list[Probe]:
        plan = self.plan
        block = plan.block_at(step)
        return [Probe(derive_seed(plan.seed, "probe", draw, k), block) for k in range(plan.estimator.probes)]

    def _fitted(self, draw: int) -> list[Example]:
        """The rows that directions are fitted to before a step; none if they are not."""
        plan = self.plan
        if plan.fitting is None:
            return []
        return self._split(plan.fitting, draw)[0]

    def _split(self, fitting: Fitting, draw: int) -> tuple[list[Example], list[Example]]:
        plan = self.plan
        return split(plan.train, fitting, plan.optimizer.batch_size, plan.seed, draw, answer_tokens)

    def _batch(self, draw: int) -> list[Example]:
        plan = self.plan
        if plan.fitting is not None:
            return self._split(plan.fitting, draw)[1]
        return batch(plan.train, plan.optimizer.batch_size, plan.seed, draw)

    def _evaluation_due(self, done: int, late: bool) -> bool:
        plan = self.plan
        if not plan.held_out or done in self.history.evaluations:
            return False
        return late or done in (0, plan.optimizer.steps) or (plan.eval_every > 0 and done % plan.eval_every == 0)

    def _evaluate(self, done: int) -> None:
        start, plan = self.clock(), self.plan
        total = len(plan.held_out)
        if self._descent is not None:
            self._descent.fresh()
        evaluation = plan.objective.evaluate(
            self.engine, plan.held_out, lambda n: self.listener.evaluating(n, total), plan.exam(done)
        )
        fault = self.engine.fault()
        if fault or not all(map(math.isfinite, (evaluation.metric, evaluation.loss, evaluation.error or 0.0))):
            what = f"{fault} is no longer finite" if fault else "the held-out loss was not a finite number"
            if not done:
                raise DivergedError(
                    f"before the first step {what}: the model itself cannot be scored in this precision; "
                    "look at the rows, or set model.dtype to a wider one"
                )
            self._roll_back(plan.optimizer.guard.spoilt(self.history, what))
            return
        slowed = plan.slowed(self.history)
        self._record(evaluation_record(done, evaluation))
        self.listener.evaluated(done, evaluation, self.clock() - start)
        if plan.slowed(self.history) < slowed and not plan.settled(self.history):
            self.listener.slowed(done, plan.slowed(self.history))

    def _step(self, step: int) -> None:
        if self._descent is not None:
            self._descend(step, self._descent)
            return
        start, plan, before = self.clock(), self.plan, self.history.steps
        eps = self.engine.effective_eps(plan.epsilon.at(step, self._known(before)))
        seen = self._observe(self.history.draws)
        if seen is not None and not seen.finite:
            self._roll_back(plan.optimizer.guard.not_finite(self.history), discarded=1)
            return
        space = None if seen is None else self._fit(seen)
        report = self._measure(step, self.history.draws, before, eps)
        if seen is not None:
            report = replace(report, space=space, work=report.work + seen.work)
        found = report.estimate
        if not all(map(math.isfinite, chain(found.gradients, found.preconditioned, *found.losses))):
            self._roll_back(plan.optimizer.guard.not_finite(self.history), discarded=1)
            return
        self._record(step_record(report))
        apply(self.engine, report)
        self.listener.stepped(report, self.clock() - start)

    def _descend(self, step: int, descent: GradientSteps) -> None:
        start, lr = self.clock(), self.plan.lr_at(step, self.history)
        report, gradient = descent.take(step, self.history.draws, lr, self.history)
        if not (math.isfinite(report.estimate.loss) and math.isfinite(gradient.norm)):
            self._roll_back(self.plan.optimizer.guard.not_finite(self.history), discarded=1)
            return
        self._record(step_record(report))
        descent.apply(report, gradient)
        self.listener.stepped(report, self.clock() - start)

    def _observe(self, draw: int) -> Observed | None:
        """What the engine sees of the task as it stands, at the rows that directions are fitted to. None: there are no directions."""
        if self.plan.fitting is None:
            return None
        examples, objective = self._fitted(draw), scored(self.plan.objective)
        return self.engine.observe(objective.requests(examples), lambda scores: objective.gradient(examples, scores))

    def _fit(self, observed: Observed) -> str:
        """Let the engine take up directions fitted to what was seen; their digest."""
        from twinpass.estimate.directions import fit

        known, engine = self.plan.fitting, self.engine
        assert known is not None
        space = fit(observed, engine.outputs, rank=known.rank, ridge=known.ridge)
        digest = self._spaces.save(space)
        engine.use(space)
        return digest

    def _roll_back(self, rollback: Rollback, discarded: int = 0) -> None:
        optimizer, before = self.plan.optimizer, len(self.history.steps)
        if self.history.rollbacks >= optimizer.guard_rollbacks:
            raise DivergedError(
                f"step {before}: {rollback.reason}, after {self.history.rollbacks} rollbacks; "
                f"lower optimizer.lr (now {optimizer.lr:g}, slowed down to {optimizer.lr * self.plan.slowed(self.history):g}){self._best()}"
            )
        if self._descent is not None:
            rollback = replace(rollback, to=self._descent.beginning(rollback.to))
        scale = self.plan.slowed_by(self.history, rollback)
        record = {"kind": "rollback", "to": rollback.to, "lr_scale": scale, "discarded": discarded}
        self._record({**record, "reason": rollback.reason})
        self.return_to(len(self.history.steps))
        self.listener.rolled_back(before, rollback, scale)

    def return_to(self, step: int) -> None:
        """Give the engine the weights that it had after ``step`` steps."""
        if self._descent is None or not self._descent.stored(step, self.history):
            self.engine.reset()
        self._advance(step)

    def _best(self) -> str:
        """What there is of a run that goes no further."""
        if not any(self.history.evaluations):
            return ""
        step = self.history.kept("best")
        return (
            f"; its best evaluation, {self.history.evaluations[step]:.3g}, was after step {step}: replay rebuilds that"
        )

    def _record(self, record: Mapping[str, Any]) -> None:
        self.journal.append(record)
        self.history.fold(record)
