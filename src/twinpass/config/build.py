"""Compose engine, task and plan from a configuration: the one place where all layers meet."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from transformers import PreTrainedTokenizerBase

from twinpass.config.encode import encode
from twinpass.config.engines import Start, TorchSettings
from twinpass.config.schema import Config
from twinpass.config.tasks import TaskSettings
from twinpass.engine.base import Engine
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import ConfigError, DataError
from twinpass.model.load import load
from twinpass.perturb.noise import derive_seed
from twinpass.task.rows import Row, read_rows
from twinpass.task.template import Template
from twinpass.train.trainer import Plan

E_co = TypeVar("E_co", bound=Engine, covariant=True)


@dataclass(frozen=True)
class Run(Generic[E_co]):
    """An engine at ``theta_0``, its tokenizer, and the plan to train it by."""

    engine: E_co
    tokenizer: PreTrainedTokenizerBase
    plan: Plan


def build(config: Config) -> Run[Engine]:
    """Read the data, load the model, tokenise, compose.

    Raises:
        TwinpassError: data or model cannot be used. Nothing has been written then.
    """
    return _build(config, config.engine.start)


def build_embedded(config: Config) -> Run[TorchEngine]:
    """The same where only the embedded engine will do.

    Raises:
        ConfigError: the configuration names another.
    """
    if not isinstance(config.engine, TorchSettings):
        raise ConfigError(
            config.source, ["[engine] kind: this command runs on the embedded engine; --set engine.kind=torch"]
        )
    return _build(config, config.engine.start)


def _build(config: Config, start: Callable[[Start], E_co]) -> Run[E_co]:
    task = config.task
    train, template = _training_rows(task)
    held_out = read_rows(Path(task.eval), task.eval_rows)
    model, tokenizer = load(config.model.path, config.model.dtype)
    encoded = encode(template, config.trainable, train, held_out, model, tokenizer)
    engine = start(
        Start(
            config.model.path,
            config.model.dtype,
            model,
            tokenizer,
            config.trainable,
            config.estimator,
            config.reuse,
            encoded.invocation,
            derive_seed(config.run.seed, "adapter"),
        )
    )
    plan = Plan(
        estimator=config.estimator,
        objective=task.objective(),
        epsilon=config.epsilon,
        optimizer=config.optimizer,
        train=encoded.train,
        held_out=encoded.held_out,
        policy=config.reuse,
        seed=config.run.seed,
        eval_every=config.run.eval_every,
        block_at=config.trainable.block_at,
    )
    return Run(engine, tokenizer, plan)


def _training_rows(task: TaskSettings) -> tuple[list[Row], Template]:
    """The rows to train on, and the template with its demonstrations."""
    if not task.shots:
        return read_rows(Path(task.train), task.train_rows), task
    rows = read_rows(Path(task.train))
    wanted = task.train_rows or max(1, len(rows) - task.shots)
    if wanted + task.shots > len(rows):
        raise DataError(
            f"{task.train}: {wanted} rows to train on and {task.shots} shots are more than the {len(rows)} in the file; "
            "lower task.train_rows or task.shots"
        )
    return rows[:wanted], task.with_shots(rows[-task.shots :])
