"""Compose engine, task and plan from a configuration: the one place where all layers meet."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from twinpass.config.encode import encode
from twinpass.config.schema import Config, TaskSettings
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.embedded.load import load
from twinpass.errors import DataError
from twinpass.objective.choice import Choice
from twinpass.perturb.noise import derive_seed
from twinpass.task.rows import Row, read_rows
from twinpass.task.template import Template
from twinpass.train.trainer import Plan


@dataclass(frozen=True)
class Run:
    """An engine at ``theta_0``, its tokenizer, and the plan to train it by."""

    engine: TorchEngine
    tokenizer: PreTrainedTokenizerBase
    plan: Plan


def build(config: Config) -> Run:
    """Read the data, load the model, tokenise, compose.

    Raises:
        TwinpassError: data or model cannot be used. Nothing has been written then.
    """
    task = config.task
    train, template = _training_rows(task)
    held_out = read_rows(Path(task.eval), task.eval_rows)
    model, tokenizer = load(config.model.path, config.model.dtype)
    encoded = encode(template, config.trainable, train, held_out, model, tokenizer)
    engine = TorchEngine(
        model,
        config.trainable,
        reuse=config.reuse,
        chunk_rows=config.engine.chunk_rows,
        invocation=encoded.invocation,
        noise=config.estimator.noise,
        perturbation=config.estimator.perturbation,
        seed=derive_seed(config.run.seed, "adapter"),
        reload=lambda: dict(load(config.model.path, config.model.dtype)[0].named_parameters()),
    )
    plan = Plan(
        estimator=config.estimator,
        objective=Choice(),
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
