"""The Python face: a model, a tokenizer and rows in; a trained model and a run folder out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinpass.config.checks import conflicts
from twinpass.config.compose import Base, Material, Recipe, compose
from twinpass.config.engines import LANES, DeviceName, TorchSettings
from twinpass.config.finetuned import BASE_WEIGHTS, origin, written
from twinpass.config.given import Rows, Words, handling, items, objective_given, section
from twinpass.config.learner import LOOKED, WEIGHTS, reached
from twinpass.config.schema import RunSettings
from twinpass.config.suiting import Wanted
from twinpass.config.tasks import TaskSettings
from twinpass.errors import ConfigError
from twinpass.estimate.base import Estimator
from twinpass.model.identity import require_language_model
from twinpass.model.load import load
from twinpass.model.trainable import Trainable
from twinpass.objective.base import Objective
from twinpass.objective.generation import Generation
from twinpass.paths import expand
from twinpass.perturb.noise import Distribution
from twinpass.report import files
from twinpass.report.callbacks import Callbacks
from twinpass.report.listener import Listeners
from twinpass.report.progress import ProgressBar
from twinpass.report.trackers import TrackerName, several, tracking, unusable
from twinpass.reuse.auto import Auto
from twinpass.reuse.base import Policy
from twinpass.schedule.epsilon import Epsilon
from twinpass.settings import ComputeDtype, Perturbation
from twinpass.task.rows import Row
from twinpass.task.saved import saved
from twinpass.train.folder import RunFolder
from twinpass.train.header import FINETUNE
from twinpass.train.history import Keep
from twinpass.train.optimizer import Optimizer, Sgd
from twinpass.train.run import carry_out

Exist = Literal["error", "resume", "new"]


@dataclass(frozen=True)
class _Given:
    """A model that was given, as far as the section [model] has to say it."""

    dtype: str


def load_model(path: str, dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model on the CPU, in ``dtype``, and its tokenizer: from a folder, a hub id, a .gguf file, or "smollm2".

    Raises:
        ModelError: it cannot be found or read, or it is not a causal language model.
    """
    return load(path, dtype)


@torch.inference_mode(False)  # whatever a notebook has set
@torch.enable_grad()
def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Rows | None = None,
    held_out: Rows | None = None,
    *,
    out: str | Path,
    task: TaskSettings | Mapping[str, Any] | None = None,
    prompt: str = "",
    options: Sequence[str] = (),
    completion: str = "",
    suffix: str = "",
    label: str = "label",
    labels: Sequence[str | int] = (),
    trainable: Trainable | None = None,
    rewards: Callable[..., Any] | str | Sequence[Callable[..., Any] | str] = (),
    generation: Generation | None = None,
    objective: Objective | None = None,
    estimator: Estimator | None = None,
    optimizer: Optimizer | None = None,
    epsilon: Epsilon | None = None,
    reuse: Policy | None = None,
    noise: Distribution = "binomial",
    perturbation: Perturbation = "tandem",
    compute_dtype: ComputeDtype | None = None,
    seed: int = 0,
    eval_every: int | None = None,
    keep: Keep = "best",
    patience: int | None = None,
    max_seconds: float | None = None,
    resume: bool = False,
    accept_changes: bool = False,
    exist: Exist = "error",
    callbacks: Callbacks | None = None,
    report_to: Sequence[TrackerName] | str = (),
    **settings: Any,
) -> dict[str, Any]:
    """Train ``model`` on rows: along the exact gradient of the answer's tokens unless told otherwise, or by forward passes.

    The prompt is filled from each row's fields, ``suffix`` follows, and the model learns to give the right one of
    ``options`` the highest probability; or, without options, to write ``completion``, filled from the row as well, such as
    " {summary}"; or, with ``rewards``, to write what these functions reward (docs/rewards.md). Without any of them, the form of the rows
    says what they mean (docs/rows.md). What is trained and how, where
    neither is said, follows the task, as measured (docs/training.md): adapters along the exact gradient, or :class:`Informed` for
    options whose prompts end alike without a suffix. Learning rate, steps, rows a step, eps and estimator follow what is trained (docs/defaults.md). All is as in a configuration file.

    Args:
        model: a causal language model, on the CPU or on one CUDA device; it is trained where it lies. Its weights stay as they are, and the adapter lies in ``out/adapter``,
            unless ``trainable`` is :class:`Full`, :class:`Projections`, :class:`Layers` or :class:`Pattern`: then they are trained in place.
        task: a section [task] instead of ``prompt`` and what goes with it, such as ``{"name": "rte", "path": "data/RTE"}``
            (docs/tasks.md), or a task of your own. It may name sources; ``train`` and ``held_out`` go before them.
        train: rows, such as ``{"text": "A fine film.", "label": 1}``: a list, a ``Dataset`` or a ``DataFrame``.
        held_out: rows to report the metric on (accuracy, or the mean probability of a completion's token), before and after. None: a
            share of ``train`` (``eval_fraction``, a tenth by default); an empty list: none.
        rewards: a function of written texts, or several, of any form that docs/rewards.md names. ``prompt`` is then the column ``prompt`` of each row,
            if it is not given; ``weights``, ``samples`` and other keys of such a task are ``settings``.
        generation: how texts are written that are rewarded.
        objective: what is minimised and reported, if not the usual for options or for a completion.
        noise: distribution of the directions that an estimator of probes asks for, also "gaussian" or "rademacher".
        perturbation: "tandem" runs all lanes in one pass; "inplace" lets the weights walk from lane to lane.
        compute_dtype: "bfloat16" multiplies in bfloat16 beside float32 weights (docs/maths/bfloat16.md).
        keep: the weights that are left are those of the "best" evaluation, the later of equal ones, or the "last".
        patience: stop once so many evaluations came to no more than one before them (0: never); by default as suits what is trained. With an
            optimizer's schedule "plateau" its rate falls then, and the third time the run stops.
        max_seconds: stop after so many seconds of steps and evaluations; resumed, a run goes on for as long again.
        out: the run folder; it must be new, unless ``resume`` continues the run in it, or ``exist`` says otherwise.
        exist: where ``out`` holds a run already: an "error"; "resume" it, so that a cell of a notebook can be run again (a finished run
            is left as it is); or begin a "new" one beside it, in ``out-2`` and so on.
        callbacks: functions to be told of steps, evaluations, rollbacks and the end.
        report_to: trackers that are told as well: "tensorboard", "wandb", "trackio".
        settings: other keys of the section [task], such as ``on_error="skip"`` or ``truncate="left"``.
        accept_changes: resume although rows, tokenizer or code are others than the run began with; its journal will say so.

    Returns:
        The content of ``out/summary.json``.

    Raises:
        TwinpassError: something cannot be used; the message says what, and what to do. pydantic's ValidationError
            (a ValueError) for a setting out of range.
    """
    require_language_model(model)
    task = section(task, Words.of(prompt, suffix, completion, options, label, labels, rewards), settings)
    read = items(task, train, held_out)
    dtype = str(model.dtype).removeprefix("torch.")
    trainable, estimator, optimizer, epsilon, suited = Wanted(trainable, estimator, optimizer, epsilon).suited(
        task,
        [item for item in read[0][:LOOKED] if isinstance(item, Row)],
        greedy=generation is not None and not generation.temperature,
        low=not (trainable is None or trainable.adapter)
        and (compute_dtype == "bfloat16" or dtype not in ("float32", "float64")),
        probing=(reuse is not None and reuse.approximate)
        or (objective is not None and not objective.differentiable)
        or {"noise": noise, "perturbation": perturbation} != LANES,
    )
    moved = reached(trainable, estimator)
    eval_every = suited.eval_every if eval_every is None else eval_every
    patience = suited.patience if patience is None else patience
    reuse = reuse or Auto()
    device: DeviceName = "cuda" if model.device.type == "cuda" else "cpu"
    engine = TorchSettings(device=device, noise=noise, perturbation=perturbation, compute_dtype=compute_dtype)
    sections: dict[str, Any] = {
        "model": _Given(dtype),
        "trainable": moved,
        "task": task,
        "generation": generation,
        "estimator": estimator,
        "run": RunSettings(out=str(out), seed=seed, eval_every=eval_every, keep=keep, patience=patience),
    }
    sections |= {"optimizer": optimizer, "objective": objective, "epsilon": epsilon, "reuse": reuse, "engine": engine}
    path = expand(str(out))
    if exist == "new":
        path = _beside(path)
    resume = resume or (exist == "resume" and RunFolder(path).journal.exists())
    report_to = several(report_to)
    if problems := conflicts(sections, suited, begun=resume) or engine.lacks(sections) or unusable(report_to):
        raise ConfigError("finetune", problems)
    folder = RunFolder(
        path,
        named="out",
        instead='exist="resume" continues it, exist="new" begins one beside it; or choose another folder with out=FOLDER',
        accepting="accept_changes=True",
    )
    base = folder.path / BASE_WEIGHTS
    with folder.claim(new=not resume):
        if resume and base.exists():
            with files.storing(base, "read"):
                model.load_state_dict(load_file(base), strict=False)
        run = compose(
            Recipe(moved, estimator, optimizer, epsilon, reuse, seed, eval_every, keep, max_seconds, patience),
            Material(task, objective, *read, generation),
            Base(model, tokenizer, "", dtype, lambda: load_file(base)),
            engine.start,
        )
        values: dict[str, Any] = {
            FINETUNE: origin(model, run.invocation),
            "template": saved(run.template),
            "task": handling(task),
            "trainable": {"kind": type(trainable).__name__, **_fields(trainable)},
            **({} if generation is None else {"generation": _fields(generation)}),
            **objective_given(objective, task, run.plan.objective),
            "estimator": {"kind": type(estimator).__name__, **_fields(estimator)},
            "optimizer": {
                **({} if isinstance(optimizer, Sgd) else {"kind": type(optimizer).__name__}),
                **_fields(optimizer),
            },
            "epsilon": {"kind": type(epsilon).__name__, **written("epsilon", epsilon)},
            "reuse": {"policy": type(reuse).__name__, **written("reuse", reuse)},
            "engine": {"noise": noise, "perturbation": perturbation, "compute_dtype": compute_dtype},
            "run": {
                "seed": seed,
                "eval_every": eval_every,
                "keep": keep,
                "patience": patience,
                "max_seconds": max_seconds,
            },
        }
        records: Sequence[Mapping[str, Any]] = ()
        accepted = None
        try:
            if resume:
                journal, contents, accepted = folder.resume(
                    values,
                    run.engine,
                    run.ground,
                    accept=accept_changes,
                    settings=sections
                    | {"trainable": trainable, "template": run.template, "objective": run.plan.objective},
                )
                records = contents.records
            else:
                if not trainable.adapter:
                    files.written(base, partial(save_file, dict(run.engine.parameters)))
                journal = folder.begin(values, run.engine, run.ground)
            console, told = Console(stderr=True), callbacks or Callbacks()
            for note in (*([] if moved is trainable else [f"{type(trainable).__name__}(): {WEIGHTS}"]), *run.notes):
                console.print(note, markup=False)
            with ProgressBar(console) as bar, tracking(report_to, folder.path, values) as trackers:
                summary = carry_out(
                    folder, run.engine, run.plan, journal, records, Listeners([bar, told, *trackers]), accepted
                )
        finally:
            run.plan.objective.close()
            run.engine.close()
        folder.write_summary(summary)
        told.ended(summary)
    return summary


def _beside(path: Path) -> Path:
    """``path``, or the first of ``path-2``, ``path-3``, ... that holds no run."""
    numbered = (path.with_name(f"{path.name}-{i}") for i in count(2))
    return next(place for place in chain([path], numbered) if not RunFolder(place).journal.exists())


def _fields(settings: Any) -> dict[str, Any]:
    return asdict(settings)
