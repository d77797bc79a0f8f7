"""A run of ``twinpass.finetune``: what its folder says of the model, and the engine it began with."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from twinpass.config.learner import reached
from twinpass.config.named import TaskByName
from twinpass.config.schema import SECTIONS
from twinpass.config.tasks import AutoTask, TaskSettings
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import JournalError, ModelError
from twinpass.estimate.base import Estimator
from twinpass.model.load import load
from twinpass.perturb.noise import derive_seed
from twinpass.report.files import storing
from twinpass.train.header import FINETUNE

BASE_WEIGHTS = "base.safetensors"
"""The weights that a run began with, where they are trained themselves."""


def origin(model: PreTrainedModel, invocation: tuple[int, ...]) -> dict[str, Any]:
    """The section that marks the folder, and says where the model came from, as far as it knows."""
    path = model.name_or_path or ""
    if path and (Path(path).is_dir() or (path.endswith(".gguf") and Path(path).is_file())):
        path = str(Path(path).resolve())
    return {"model": path, "dtype": str(model.dtype).removeprefix("torch."), "invocation": list(invocation)}


def written(name: str, settings: Any) -> dict[str, Any]:
    """What a section's object says, with the class of each that it holds, as an approximation inside another, or schedules that are joined."""
    family, values = SECTIONS[name], asdict(settings)
    for key in family.nested:
        own = getattr(settings, key, None)
        if isinstance(own, tuple):
            values[key] = [{family.key: type(each).__name__, **written(name, each)} for each in own]
        elif own is not None:
            values[key] = {family.key: type(own).__name__, **written(name, own)}
    return values


def section(values: Mapping[str, Any]) -> TaskSettings:
    """What a run's section [task] says, whose template stands elsewhere."""
    known = {each.name for each in fields(TaskByName if "name" in values else AutoTask)}
    given = {key: value for key, value in values.items() if key in known}
    return TaskByName(**given) if "name" in values else AutoTask(**given)


def begun(run: Path, settings: Mapping[str, Any]) -> TorchEngine:
    """The engine that a run began with.

    Raises:
        JournalError: the model cannot be loaded from where it came from, or config.toml is not what finetune writes.
    """
    try:
        names = (FINETUNE, "trainable", "estimator", "engine")
        made, trainable, estimator, engine = (dict(settings[name]) for name in names)
        kinds = {kind.__name__: kind for name in ("trainable", "estimator") for kind in SECTIONS[name].kinds.values()}
        chosen = reached(kinds[trainable.pop("kind")](**trainable), kinds.get(estimator["kind"], Estimator))
        seed = derive_seed(settings["run"]["seed"], "adapter")
        path, dtype, invocation = made["model"], made["dtype"], tuple(made["invocation"])
        noise, perturbation = engine["noise"], engine["perturbation"]
    except (KeyError, TypeError, ValidationError) as error:
        raise JournalError(
            f"{run}: config.toml is not what twinpass.finetune writes, or what it trains has a class of its own; "
            "go on with twinpass.finetune(..., resume=True)"
        ) from error
    model = _load(run, path, dtype)
    if (run / BASE_WEIGHTS).exists():
        with storing(run / BASE_WEIGHTS, "read"):
            model.load_state_dict(load_file(run / BASE_WEIGHTS), strict=False)
    return TorchEngine(model, chosen, noise=noise, perturbation=perturbation, invocation=invocation, seed=seed)


def _load(run: Path, path: str, dtype: str) -> PreTrainedModel:
    known = "" if path else "it came from nowhere that can be named"
    if not known:
        try:
            return load(path, dtype)[0]
        except (ModelError, KeyError) as error:
            known = str(error)
    raise JournalError(
        f"{run}: the model of this run is known to Python only ({known}); "
        "give it to twinpass.finetune(model, ..., resume=True), which goes on from where the run stands"
    )
