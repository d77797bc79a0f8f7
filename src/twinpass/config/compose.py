"""The one place where all layers meet: a run is composed here, from a configuration file or for ``finetune``."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinpass.config.architecture import computing
from twinpass.config.encode import encode
from twinpass.config.engines import TorchSettings
from twinpass.config.ground import ground
from twinpass.config.origins import origins
from twinpass.config.schema import Config
from twinpass.config.tasks import TaskSettings
from twinpass.core import Probe
from twinpass.engine.base import Engine
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.subject import Subject
from twinpass.errors import ConfigError, DataError, ModelError
from twinpass.estimate.base import Estimator
from twinpass.model.causal import ends
from twinpass.model.load import load
from twinpass.model.trainable import Trainable
from twinpass.objective.base import Objective
from twinpass.objective.generation import Generation
from twinpass.perturb.noise import derive_seed
from twinpass.reuse.base import Policy
from twinpass.schedule.epsilon import Epsilon
from twinpass.task.outdone import outdone
from twinpass.task.rows import Item
from twinpass.task.template import Template
from twinpass.train.history import Keep
from twinpass.train.optimizer import Optimizer
from twinpass.train.plan import TrainingPlan

E_co = TypeVar("E_co", bound=Engine, covariant=True)


@dataclass(frozen=True)
class Session(Generic[E_co]):
    """An engine at ``theta_0``, its tokenizer, the plan to train it by, and what that stands on (:mod:`twinpass.config.ground`).

    ``template`` is what rows were read by, and ``notes`` say what was found in them.
    """

    engine: E_co
    tokenizer: PreTrainedTokenizerBase
    plan: TrainingPlan
    ground: Mapping[str, str]
    template: Template
    invocation: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """How to train, whatever the model and the rows are."""

    trainable: Trainable
    estimator: Estimator
    optimizer: Optimizer
    epsilon: Epsilon
    reuse: Policy
    seed: int
    eval_every: int
    keep: Keep = "best"
    max_seconds: float | None = None
    patience: int = 0


@dataclass(frozen=True)
class Material:
    """What to train on: rows, what is made of them, and the objective, if not the usual; without rows ``held_out``, the task says how many are.

    ``generation``: how texts are written, where the task has them written.
    """

    task: TaskSettings
    objective: Objective | None
    train: Sequence[Item]
    held_out: Sequence[Item] | None
    generation: Generation | None = None


@dataclass(frozen=True)
class Base:
    """The model to train, in ``dtype``, from ``path`` (empty for an object); ``reload`` returns its tensors by name once more.

    Code that comes with the checkpoint may run if ``trust_remote_code``.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: str
    dtype: str
    reload: Callable[[], Mapping[str, Tensor]]
    trust_remote_code: bool = False


def build(config: Config) -> Session[Engine]:
    """Read the data, load the model, tokenise, compose.

    Raises:
        TwinpassError: data or model cannot be used. Nothing has been written then.
    """
    return _build(config, config.engine.start)


def build_embedded(config: Config) -> Session[TorchEngine]:
    """The same where only the embedded engine will do.

    Raises:
        ConfigError: the configuration names another.
    """
    if not isinstance(config.engine, TorchSettings):
        raise ConfigError(
            config.source, ["[engine] kind: this command runs on the embedded engine; --set engine.kind=torch"]
        )
    return _build(config, config.engine.start)


def compose(recipe: Recipe, material: Material, base: Base, start: Callable[[Subject], E_co]) -> Session[E_co]:
    """Tokenise rows and start an engine.

    Raises:
        TwinpassError: a row or the model cannot be used. Nothing has been written then.
    """
    encoded = encode(
        material.task,
        material.train,
        material.held_out,
        recipe.trainable,
        base.model,
        base.tokenizer,
        recipe.seed,
        material.generation,
    )
    objective = material.objective or encoded.objective
    if objective.compares and not encoded.template.chooses:
        raise DataError("the objective compares options, and rows of this form have none; leave [objective] out")
    if recipe.optimizer.schedule == "plateau" and not encoded.held_out:
        raise DataError(
            'the learning rate falls by what evaluations say ([optimizer] schedule = "plateau"), and no rows are held out; '
            'hold some out ([task] eval_fraction, in Python held_out), or set schedule = "linear"'
        )
    estimator = recipe.estimator
    engine = start(
        Subject(
            base.model,
            base.tokenizer,
            recipe.trainable,
            recipe.reuse,
            base.path,
            base.dtype,
            lanes=_most_lanes(estimator),
            invocation=encoded.invocation,
            seed=derive_seed(recipe.seed, "adapter"),
            trust_remote_code=base.trust_remote_code,
            reload=base.reload,
        )
    )
    with ExitStack() as fails:
        fails.callback(engine.close)  # a model that was given is left as it was
        if estimator.fed_back and (unfit := engine.unfit_for_feedback()):
            raise ModelError(unfit)
        plan = TrainingPlan(
            estimator=estimator,
            objective=objective,
            epsilon=recipe.epsilon,
            optimizer=recipe.optimizer,
            train=encoded.train,
            held_out=encoded.held_out,
            planner=recipe.reuse.planner(),
            seed=recipe.seed,
            eval_every=recipe.eval_every,
            keep=recipe.keep,
            max_seconds=recipe.max_seconds,
            patience=recipe.patience,
            block_at=recipe.trainable.block_at,
            fitting=recipe.trainable.fitting,
            ends=ends(base.model, base.tokenizer),
        )
        examples = [*encoded.train, *encoded.held_out]
        known = computing(base.model)
        below = ground(encoded.template, material.train, material.held_out or (), examples, base.tokenizer, known)
        below |= material.task.ground
        notes = [*origins(material.task, material.train, material.held_out), *encoded.notes]
        if getattr(getattr(objective, "choice", objective), "score", "") == "sum":
            notes += outdone(examples)
        if estimator.whole and (longest := objective.longest(recipe.optimizer.batch_size)):
            notes.append(longest)
        session = Session(engine, base.tokenizer, plan, below, encoded.template, encoded.invocation, tuple(notes))
        fails.pop_all()
    return session


def _most_lanes(estimator: Estimator) -> int:
    """Lanes of a step, or of as many probes with both signs, which trials have."""
    probes = [Probe(seed) for seed in range(estimator.probes)]
    return max(2 * estimator.probes, len(estimator.lanes(probes, 1.0)))


def _build(config: Config, start: Callable[[Subject], E_co]) -> Session[E_co]:
    task, path, dtype, trust = config.task, config.model.path, config.model.dtype, config.model.trust_remote_code
    train, held_out = task.rows()

    def from_checkpoint() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return load(path, dtype, trust_remote_code=trust)

    model, tokenizer = from_checkpoint()
    config.engine.receive(model)
    recipe = Recipe(
        config.trainable,
        config.estimator,
        config.optimizer,
        config.epsilon,
        config.reuse,
        config.run.seed,
        config.run.eval_every,
        config.run.keep,
        config.run.max_seconds,
        config.run.patience,
    )
    base = Base(model, tokenizer, path, dtype, lambda: dict(from_checkpoint()[0].named_parameters()), trust)
    return compose(recipe, Material(task, config.objective, train, held_out, config.generation), base, start)
