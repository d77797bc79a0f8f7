"""What all optimizers have, those along whole gradients, and plain SGD along probes."""

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any, ClassVar

from pydantic import model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from twinpass.core import Estimate
from twinpass.engine.base import AdamStep, RelativeStep
from twinpass.errors import ConfigError
from twinpass.schedule.learning_rate import ScheduleName, factor
from twinpass.settings import STRICT, Count, Index, NonNegative, Positive, Several, Share
from twinpass.train.automatic import AUTO, spell_steps
from twinpass.train.history import History
from twinpass.train.safeguards import ClipWindow, DivergenceGuard, MedianClip


@dataclass(frozen=True, config=STRICT)
class Optimizer:
    """``steps`` minibatches of ``batch_size``, at a learning rate that rises to ``lr`` over ``warmup`` steps and then follows ``schedule``.

    Under ``plateau`` the rate falls to 3/10 of itself whenever ``run.patience`` evaluations in a row came to no more than the best before them. The third
    time ends the run; ``steps`` are the most that it takes, by default 2,000. ``steps = "auto"`` stands for that, and in a file ``lr = "auto"`` for what suits
    what is trained; where that would be ``sgd``, whose rate depends on model and task, for ``kind = "normalised"``.

    A run has diverged once the mean loss of ``guard_window`` steps is above its best by more than ``guard_loss`` times that, or once the
    held-out metric is more than ``guard_metric`` below its best (and more than chance makes likely); 0 switches either off.
    Then it goes back to its best and multiplies lr by ``guard_lr``, at most ``guard_rollbacks`` times. With ``guard_zeros`` a run
    whose gradients are nearly all exactly 0 stops.

    ``decay`` pulls adapters back to where they do nothing, that is the model back to its base weights: each step takes away the share
    ``lr * decay`` of every weight, first. (What arXiv 2605.30148 calls anchored weight decay; the model's own weights have no such anchor
    in memory.)

    ``along_probes``: updates are scalars times directions; lr, steps and batch_size that are left out then follow what is trained.
    A ``scale_free`` one goes as far whatever gradients are multiplied by: its lr counts in eps, and follows nothing. A ``relative`` one
    moves the model's own weights by a share of themselves, along what is fed back to them.
    """

    along_probes: ClassVar[bool] = True
    scale_free: ClassVar[bool] = False
    relative: ClassVar[bool] = False

    lr: Positive
    steps: Count
    batch_size: Several = 16
    schedule: ScheduleName = "linear"
    warmup: Index = 0
    guard_loss: NonNegative = 1.0
    guard_metric: NonNegative = 0.15
    guard_window: Count = 20
    guard_lr: Share = 0.5
    guard_rollbacks: Index = 5
    guard_zeros: bool = True
    decay: NonNegative = 0.0

    @model_validator(mode="before")
    @classmethod
    def _spelt_out(cls, given: Any) -> Any:
        """What ``steps="auto"`` stands for, and steps that "plateau" leaves open; a rate follows what is trained, which is not known here.

        Raises:
            ConfigError: one of them cannot be.
        """
        if not isinstance(given, ArgsKwargs):
            return given
        names = [field.name for field in fields(cls)]
        values = {**dict(zip(names, given.args, strict=False)), **(given.kwargs or {})}
        open_end = values.get("schedule") == "plateau" and "steps" not in values
        if not open_end and AUTO not in (values.get("steps"), values.get("lr")):
            return given
        problems = spell_steps(values)
        if values.get("lr") == AUTO:
            problems.append(
                'lr: "auto" stands for the rate that suits what is trained, which only finetune knows: leave its optimizer out, or give lr a number; '
                "Normalised() steps along random directions at a rate that needs no search"
            )
        if problems:
            raise ConfigError(cls.__name__, problems)
        return ArgsKwargs((), values)

    def __post_init__(self) -> None:
        if not self.guard_rollbacks and self.guard_lr != Optimizer.guard_lr:
            raise ValueError("guard_lr: no effect, as guard_rollbacks = 0 takes nothing back; leave one of them out")

    def lr_at(self, step: int) -> float:
        """The learning rate of ``step``, before any slow-down by the guard."""
        return self.lr * factor(self.schedule, step, self.steps, self.warmup)

    def lengths(self, estimate: Estimate, history: History) -> tuple[float, ...]:
        """What takes the projected gradients' place in the update: a pure function of the estimate and of the steps in force before it.

        They are journaled, so that a run resumes and replays without asking again.
        """
        return estimate.gradients

    @property
    def guard(self) -> DivergenceGuard:
        """The divergence guard."""
        return DivergenceGuard(self.guard_window, self.guard_loss, self.guard_metric)


@dataclass(frozen=True, config=STRICT)
class GradientOptimizer(Optimizer, ABC):
    """Steps along whole gradients, which are no scalars.

    Weights, and what the optimizer keeps of its past, are stored every ``snapshot_every`` steps, in the run folder: from the last
    snapshot a run continues, or goes back, by taking the steps after it again. Those that are far behind are removed.
    """

    along_probes: ClassVar[bool] = False

    snapshot_every: Count = 25

    @abstractmethod
    def at(self, step: int, lr: float) -> AdamStep | RelativeStep:
        """Step ``step`` (from 0) at a learning rate."""


@dataclass(frozen=True, config=STRICT)
class Sgd(Optimizer):
    """``theta -= lr_t / q * sum_k clip(g_k) z_k``: plain SGD along probes.

    ``clip`` keeps ``|g|`` within so many times its median over the last ``clip_window`` probes; 0 clips nothing.
    """

    clip: NonNegative = 4.0
    clip_window: ClipWindow = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.clip and self.clip_window != Sgd.clip_window:
            raise ValueError("clip_window: no effect, as clip = 0 clips nothing; leave it out, or raise clip")

    def lengths(self, estimate: Estimate, history: History) -> tuple[float, ...]:
        return self.clipping(estimate.gradients, history)

    @property
    def clipping(self) -> MedianClip:
        """The gradient clip."""
        return MedianClip(self.clip, self.clip_window)
