"""What a run's folder says of how it was made."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinpass.config.architecture import computing, differing
from twinpass.config.encode import reading_of
from twinpass.config.finetuned import section
from twinpass.config.ground import chat_template_hash, tokenizer_hash
from twinpass.config.learner import reached
from twinpass.config.load import load_run
from twinpass.config.remember import recalled
from twinpass.config.schema import SECTIONS
from twinpass.config.tasks import AutoTask, Reading, TaskSettings, WritingTools
from twinpass.errors import JournalError, ModelError
from twinpass.estimate.base import Estimator
from twinpass.model.causal import ends
from twinpass.model.load import load
from twinpass.model.trainable import Trainable
from twinpass.objective.base import Objective
from twinpass.objective.choice import Choice
from twinpass.objective.completion import Completion
from twinpass.objective.generation import Generation
from twinpass.objective.goal import Goal
from twinpass.reuse.auto import Auto
from twinpass.task.reward import RewardTemplate
from twinpass.task.saved import loaded
from twinpass.task.template import Template
from twinpass.train.folder import RunFolder
from twinpass.train.header import FINETUNE, GROUND
from twinpass.train.journal import read

Pair = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@dataclass(frozen=True)
class RunOrigin:
    """A run's template and trainable, and the model it began with: from ``path``, or the objects ``given``.

    ``choice`` says how options are scored, where there are some, and ``generation`` how texts were written in training, if it said so.
    ``objective`` is what was minimised, if not the usual of its task. A ``finetuned`` run was given objects; ``saved`` is the folder of the whole model that it has trained, where it has.
    """

    folder: Path
    template: Template
    trainable: Trainable
    path: str
    dtype: str
    budget: int
    given: Pair | None = None
    trust_remote_code: bool = False
    choice: Choice = field(default_factory=Choice)
    generation: Generation | None = None
    finetuned: bool = False
    saved: Path | None = None
    task: TaskSettings = field(default_factory=AutoTask)
    objective: Objective | None = None

    def base(self) -> Pair:
        """The base model and its tokenizer; where a model of its own was trained, that may stand for it.

        Others than in training are warned of: configurations by the keys that say how a model computes, and what makes tokens of rows.

        Raises:
            ModelError: it cannot be loaded, or it was an object and is not the one that can be.
        """
        model, tokenizer = self._found()
        others = list(differing(self._ground.get("configuration", "{}"), computing(model)))
        if others := others + self._read_otherwise(tokenizer):
            said = f"{self.folder} was trained on other ground: {'; '.join(others)}. Give it what it began with"
            warnings.warn(said, stacklevel=3)
        return model, tokenizer

    @cached_property
    def _ground(self) -> Mapping[str, str]:
        found: Mapping[str, str] = read(RunFolder(self.folder).journal).header.get("ground", {})
        return found

    def _read_otherwise(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """What of a tokenizer is another than in training."""
        hashes = {"tokenizer": tokenizer_hash(tokenizer), "chat_template": chat_template_hash(tokenizer)}
        return [GROUND[name] for name, own in hashes.items() if self._ground.get(name) not in (None, own)]

    def _found(self) -> Pair:
        if self.given is not None:
            return self.given
        try:
            pair = load(str(self.saved or self.path), self.dtype, trust_remote_code=self.trust_remote_code)
        except ModelError as error:
            if not self.finetuned:
                raise
            raise ModelError(f"{self._teaching} {self.path} cannot be loaded: {error}") from error
        if self.finetuned and (others := self._read_otherwise(pair[1])):
            raise ModelError(f"{self._teaching} in {self.saved or self.path} {' and '.join(others)}")
        return pair

    def rewriting(self, step: int | None) -> str:
        """What writes the weights of the whole run, or of a ``step``, once more."""
        if step is not None:
            return f"'twinpass replay {self.folder} --step {step}'"
        if self.finetuned:
            return "twinpass.finetune(..., resume=True)"
        return f"'twinpass train --resume {self.folder}'"

    @property
    def _teaching(self) -> str:
        return (
            f"{self.folder} was made by twinpass.finetune from objects: give them again, twinpass.load({str(self.folder)!r}, "
            "model=model, tokenizer=tokenizer), as"
        )

    def require_base(self, found: str) -> None:
        """Refuse another base model than the run began with.

        Raises:
            ModelError: it is another one.
        """
        if found != read(RunFolder(self.folder).journal).header["base"]:
            other = "the one given" if self.given else self.path
            said = f"{self.folder} was trained on another base model: {other} has other weights"
            raise ModelError(f"{self._teaching} {self.path} has other weights now" if self._changed else said)

    @property
    def _changed(self) -> bool:
        return self.finetuned and self.given is None


def settings_of(
    folder: Path, base: PreTrainedModel | None = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> RunOrigin:
    """Read a run's configuration; ``base`` and ``tokenizer`` are the objects that ``finetune`` was given, where they cannot be loaded.

    Raises:
        TwinpassError: there is no run, or what is needed is not given.
    """
    path = RunFolder(folder).config
    if not path.is_file():
        raise JournalError(f"{folder}: there is no run here ({path.name} is missing); give the folder of a run")
    values = RunFolder(folder).settings()
    given = None if base is None or tokenizer is None else (base, tokenizer)
    if "template" in values:
        return _of_finetune(folder, values, given)
    config = load_run(folder, engine=False)
    reading = recalled(folder) or reading_of(config.task)
    model = config.model
    return RunOrigin(
        folder,
        reading.template,
        config.trainable,
        model.path,
        model.dtype,
        config.reuse.budget,
        given,
        model.trust_remote_code,
        _choice(config.objective or reading.objective),
        config.generation,
        task=config.task,
        objective=config.objective,
    )


def goal_of(settings: RunOrigin, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Goal:
    """What a run's rows are scored by.

    Raises:
        JournalError: only Python knows it.
        TwinpassError: a reward function is not there any more.
    """
    if settings.objective is not None:
        return settings.objective
    template, rewarded = settings.template, isinstance(settings.template, RewardTemplate)
    if rewarded and settings.finetuned:
        raise JournalError(
            f"{settings.folder} was trained by reward functions that only Python knows: write its texts with 'twinpass predict', "
            "and reward those"
        )
    usual = None if rewarded else settings.choice if template.chooses else Completion()
    tools = WritingTools(tokenizer, ends(model, tokenizer), settings.generation or Generation())
    return settings.task.goal(Reading(template, usual), tools)


def weights_of(settings: RunOrigin, step: int | None = None) -> Path:
    """The folder of what was trained: by the whole run, or as ``twinpass replay`` has rebuilt it after ``step`` steps.

    Raises:
        ModelError: it is not there.
    """
    folder = settings.folder if step is None else settings.folder / f"step-{step}"
    weights = folder / ("adapter" if settings.trainable.adapter else "model")
    if not weights.is_dir():
        raise ModelError(
            f"{weights}: there are no such weights; "
            + (
                f"finish the run with {settings.rewriting(step)}"
                if step is None
                else f"rebuild them with {settings.rewriting(step)}"
            )
        )
    return weights


def _of_finetune(folder: Path, values: Mapping[str, Any], given: Pair | None) -> RunOrigin:
    fields = dict(values["template"])
    template = loaded(fields)
    kinds = {kind.__name__: kind for kind in SECTIONS["trainable"].kinds.values()}
    chosen = dict(values["trainable"])
    estimators = {kind.__name__: kind for kind in SECTIONS["estimator"].kinds.values()}
    estimator = estimators.get(values.get("estimator", {}).get("kind", ""), Estimator)
    trainable = reached(kinds[chosen.pop("kind")](**chosen), estimator)
    made = values.get(FINETUNE, {})
    saved = folder / "model" if given is None and not trainable.adapter and (folder / "model").is_dir() else None
    settings = RunOrigin(
        folder,
        template,
        trainable,
        made.get("model", ""),
        made.get("dtype", "float32") if given is None else str(given[0].dtype).removeprefix("torch."),
        Auto().budget,
        given,
        choice=_choice_of(values),
        generation=Generation(**values["generation"]) if "generation" in values else None,
        finetuned=True,
        saved=saved,
        task=section(values.get("task", {})),
        objective=_objective_of(folder, values),
    )
    if given is None and saved is None and not settings.path:
        raise ModelError(f"{settings._teaching} they came from no folder or name that can be loaded again")
    return settings


def _choice(objective: Objective | None) -> Choice:
    return objective if isinstance(objective, Choice) else Choice()


def _objective_of(folder: Path, values: Mapping[str, Any]) -> Objective | None:
    given = dict(values.get("objective", {}))
    kind = given.pop("kind", None)
    kinds = {each.__name__: each for each in SECTIONS["objective"].kinds.values()}
    return kinds[kind](**given) if kind in kinds else None


def _choice_of(values: Mapping[str, Any]) -> Choice:
    given = dict(values.get("objective", {}))
    return Choice(**given) if given.pop("kind", "") == Choice.__name__ else Choice()
