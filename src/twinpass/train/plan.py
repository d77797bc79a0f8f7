"""What a run is to do, as its configuration and its rows say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from twinpass.engine.base import Engine
from twinpass.estimate.base import Estimator
from twinpass.model.trainable import Fitting
from twinpass.objective.anchor import anchored
from twinpass.objective.base import Objective
from twinpass.objective.goal import At, Goal
from twinpass.perturb.noise import derive_seed
from twinpass.reuse.plan import LanePlanner
from twinpass.schedule.epsilon import Epsilon
from twinpass.schedule.learning_rate import CUT, PLATEAUS
from twinpass.steps import Rollback
from twinpass.task.example import Example
from twinpass.train.history import History, Keep
from twinpass.train.optimizer import Optimizer


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that decides a run's course, besides the engine's weights. ``ends`` are tokens that end a text."""

    estimator: Estimator
    objective: Goal
    epsilon: Epsilon
    optimizer: Optimizer
    train: Sequence[Example]
    held_out: Sequence[Example]
    planner: LanePlanner = field(default_factory=LanePlanner)
    seed: int = 0
    eval_every: int = 0
    keep: Keep = "best"
    max_seconds: float | None = None
    patience: int = 0
    block_at: Callable[[int], int | None] = lambda step: None
    fitting: Fitting | None = None
    ends: tuple[int, ...] = ()

    def held(self, engine: Engine) -> Self:
        """The same with texts that an engine at ``theta_0`` writes, if the objective holds the model to them."""
        if not isinstance(self.objective, Objective) or self.objective.regularise == "none":
            return self
        return replace(self, train=anchored(engine, self.train, derive_seed(self.seed, "anchor"), self.ends))

    def lr_at(self, step: int, history: History) -> float:
        """The learning rate of a step that follows ``history``."""
        return self.optimizer.lr_at(step) * self.slowed(history)

    def slowed(self, history: History) -> float:
        """What the guard and, under ``plateau``, each plateau have left of the learning rate."""
        return history.lr_scale * self._cut(self.plateaus(history))

    def slowed_by(self, history: History, rollback: Rollback) -> float:
        """The same of the guard alone after a rollback. Plateaus that are taken back with their evaluations stay cut."""
        lost = self.plateaus(history) - self.plateaus(history, rollback.to)
        return history.lr_scale * self.optimizer.guard_lr * self._cut(lost)

    def plateaus(self, history: History, until: int | None = None) -> int:
        """How often evaluations, up to step ``until``, stopped to gain anything."""
        return history.plateaus(self.patience, self.eval_every, until)

    def settled(self, history: History) -> bool:
        """Whether more steps would gain nothing, as evaluations say."""
        return self.plateaus(history) >= (PLATEAUS if self.optimizer.schedule == "plateau" else 1)

    def _cut(self, times: int) -> float:
        return float(CUT**times) if self.optimizer.schedule == "plateau" else 1.0

    def writing(self, step: int, draw: int) -> At:
        """Where a step stands: each draw has random numbers of its own for what it writes."""
        return At(derive_seed(self.seed, "texts", draw), step, self.optimizer.steps)

    def exam(self, step: int = 0) -> At:
        """Where evaluations stand after ``step`` steps: all have the same random numbers."""
        return At(derive_seed(self.seed, "evaluation"), step, self.optimizer.steps)
