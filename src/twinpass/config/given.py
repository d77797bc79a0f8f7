"""What ``twinpass.finetune`` is given of a task: the same checks as for a section [task], and rows that Python has."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from twinpass.config.load import SOURCES, section_of
from twinpass.config.named import TaskByName
from twinpass.config.reward import RewardTask
from twinpass.config.tasks import AutoTask, ChatTask, ChoiceTask, CompletionTask, TaskSettings
from twinpass.errors import ConfigError
from twinpass.objective.base import Objective
from twinpass.settings import OTHERS, meant, written
from twinpass.task.reward import RewardTemplate
from twinpass.task.rows import Item
from twinpass.task.sources.read import read_objects, take

Rows = Iterable[Mapping[str, Any]] | Any
"""Mappings, a Hugging Face ``Dataset`` or a ``pandas.DataFrame``."""

_PLACES = {
    **dict.fromkeys(
        ("lr", "steps", "batch_size", "decay", "schedule", "warmup"),
        "the optimizer, such as optimizer=twinpass.AdamW(lr=2e-3, steps=60)",
    ),
    **dict.fromkeys(("rank", "alpha", "targets"), "what is trained, such as trainable=twinpass.Lora(rank=8)"),
    **dict.fromkeys(("max_tokens", "temperature", "top_p", "top_k"), "generation=twinpass.Generation(max_tokens=64)"),
    **dict.fromkeys(
        ("train_dataset", "train_data", "dataset"), "the rows to train on: say train=rows, or give them third"
    ),
    **dict.fromkeys(("eval_dataset", "validation_data", "test_dataset"), "the rows to measure on: say held_out=rows"),
    **dict.fromkeys(
        ("epochs", "num_train_epochs"),
        "the optimizer, which counts steps of batch_size rows, such as optimizer=twinpass.AdamW(lr=2e-3, steps=60)",
    ),
    "out": "the run folder: say out=FOLDER",
    "rewards": "rewards=[brief]",
    "peft_config": "what is trained, such as trainable=twinpass.Lora(rank=8)",
    "args": "arguments of finetune, such as optimizer=twinpass.AdamW(lr=2e-3, steps=60)",
    "window": "the task: say window=N",
    "eps": "epsilon=twinpass.ConstantEpsilon(1e-3)",
}
"""Where settings go that are no keys of a task."""

_WITHOUT = {
    "scale_rewards": "advantages are in standard deviations of one prompt's texts",
    "multi_objective_aggregation": "rewards are added up, and advantages taken of the sums",
    "mask_truncated_completions": "texts that max_tokens cuts off count like others; a function may return None for them",
    "num_iterations": "each step learns from texts of its own; steps_per_generation says how many steps texts are written for",
    "loss_type": "the loss is a mean over the tokens of all texts, with the divergence that beta weighs",
    "reward_processing_classes": "a reward model has its own: rewards=[twinpass.RewardModel(model, tokenizer)]",
    **dict.fromkeys(
        ("tools", "environment_factory", "rollout_func"),
        "texts are written at once, without tools or environments; a row may have a column tools, for its chat template",
    ),
}
"""What of TRL has no counterpart, and what there is instead."""


@dataclass(frozen=True)
class Words:
    """Arguments of ``finetune`` that say what a row becomes."""

    prompt: str
    suffix: str
    completion: str
    options: tuple[str, ...]
    label: str
    labels: tuple[str | int, ...]
    rewards: tuple[Callable[..., Any] | str, ...] = ()

    @classmethod
    def of(cls, prompt: str, suffix: str, completion: str, options: Any, label: str, labels: Any, rewards: Any) -> Self:
        """The same of whatever was given for lists.

        Raises:
            ConfigError: it is none.
        """
        found = _listed("options", options), label, _listed("labels", labels)
        return cls(prompt, suffix, completion, *found, several(rewards))

    def task(self, settings: Mapping[str, Any]) -> TaskSettings:
        """The task that they describe.

        Raises:
            ConfigError: they do not go together.
        """
        if "eval" in settings:
            raise _refused("eval: it names a source in a file; give the rows themselves as held_out")
        if self.rewards:
            return self._rewarded(settings)
        if self.options and self.completion:
            raise _refused("give either options to choose from, or a completion to write")
        if not self.options and (self.label != "label" or self.labels):
            raise _refused("label and labels: they name options, and there are none; leave them out")
        if self.prompt and not self.options and not self.completion:
            raise _refused("give options to choose from, or a completion to write")
        if self.options:
            _require_known(ChoiceTask, settings)
            return ChoiceTask(
                prompt=self.prompt,
                suffix=self.suffix,
                options=self.options,
                label=self.label,
                labels=written(self.labels),
                **settings,
            )
        if self.completion:
            _require_known(CompletionTask, settings)
            return CompletionTask(prompt=self.prompt, suffix=self.suffix, completion=self.completion, **settings)
        if self.suffix:
            raise _refused("suffix: it follows a prompt, and there is none; leave it out")
        kind = ChatTask if "messages" in settings else AutoTask
        _require_known(kind, settings)
        return kind(**settings)

    def _rewarded(self, settings: Mapping[str, Any]) -> TaskSettings:
        if self.options or self.completion or self.labels or self.label != "label":
            raise _refused("rewards judge any text, and options, labels or a completion name right ones; give either")
        _require_known(RewardTask, settings)
        given: dict[str, Any] = {"prompt": self.prompt} if self.prompt else {}
        task = RewardTask(**given, suffix=self.suffix, rewards=self.rewards, **settings)
        if problems := [problem for problem in task.problems() if "train:" not in problem]:
            raise ConfigError("finetune", problems)
        return task

    def said(self) -> list[str]:
        """Which of them were given."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return [key for key, value in values.items() if value and (key, value) != ("label", "label")]


def _listed(name: str, given: Any) -> tuple[Any, ...]:
    """What was given as a list; a text is none, although it has letters.

    Raises:
        ConfigError: it is no list.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise _refused(f"{name}: expected a list, got {given!r:.40}; write [...] around it")
    return tuple(given)


def _require_known(kind: type[TaskSettings], settings: Mapping[str, Any]) -> None:
    """Refuse what is neither an argument nor a key of the task, and say where it may have been meant to go."""
    known = [each.name for each in fields(kind)]
    problems = []
    for key in settings.keys() - set(known):
        place = _PLACES.get(OTHERS.get(key, key))
        close = meant(key, known)
        instead = (
            _WITHOUT[key]
            if key in _WITHOUT
            else f"it belongs to {place}"
            if place
            else f"did you mean {close}?"
            if close
            else f"keys of the task are {', '.join(known)}"
        )
        problems.append(f"{key}: there is no such argument; {instead}")
    if problems:
        raise ConfigError("finetune", sorted(problems))


def several(
    rewards: Callable[..., Any] | str | Iterable[Callable[..., Any] | str],
) -> tuple[Callable[..., Any] | str, ...]:
    """Rewards, of which one may be given alone."""
    return tuple(rewards) if isinstance(rewards, Iterable) and not isinstance(rewards, str) else (rewards,)


def section(task: TaskSettings | Mapping[str, Any] | None, words: Words, settings: Mapping[str, Any]) -> TaskSettings:
    """The task of a whole section [task], or of words and settings.

    Raises:
        ConfigError: it is none, or something is said beside it.
    """
    if task is None:
        return words.task(settings)
    if others := [*words.said(), *settings]:
        raise _refused(f"{', '.join(others)}: the task says what a row becomes; say it there, or leave task out")
    if isinstance(task, TaskSettings):
        return task
    problems: list[str] = []
    built: TaskSettings | None = section_of("task", task, problems)
    if built is None:
        raise ConfigError("finetune", problems)
    return built


def items(task: TaskSettings, train: Rows | None, held_out: Rows | None) -> tuple[list[Item], list[Item] | None]:
    """Rows that were given, or else those that the task names; and rows held out from the beginning, if any.

    Raises:
        TwinpassError: there are none, or they cannot be read.
    """
    if held_out is not None and task.eval_fraction != TaskSettings.eval_fraction:
        raise _refused("eval_fraction: no effect, as held_out has the rows that are held out; leave one of them out")
    if problems := task.idle():
        raise ConfigError("finetune", problems)
    given = None if held_out is None else list(task.within(read_objects(held_out, "held_out")))
    named: Sequence[str] = ()
    if train is not None:
        rows = take(task.within(read_objects(train, "train")), task.wanted(splits=given is None), "train")
    else:
        if problems := task.problems():
            raise _refused(f"train: give rows, or a task that names them ({problems[0]})")
        sources, named = task.sources()
        rows = task.read(sources, "train", task.wanted(splits=given is None and not named))
    if given is None and (named := named or task.sources()[1]):
        return rows, task.read(named, "eval", task.eval_rows)
    return rows, take(given, task.eval_rows, "held_out") if given else given


def handling(task: TaskSettings) -> dict[str, Any]:
    """What a task says of rows besides the template, and its name, if it goes by one."""
    rewarding = {each.name for each in fields(RewardTask)} - {each.name for each in fields(RewardTemplate)}
    names = rewarding if isinstance(task, RewardTask) else {each.name for each in fields(TaskSettings)}
    found = {name: getattr(task, name) for name in sorted(names - {*SOURCES})}
    if isinstance(task, RewardTask):
        found["rewards"] = [
            each if isinstance(each, str) else function.name
            for each, function in zip(task.rewards, task.functions, strict=True)
        ]
    if isinstance(task, TaskByName):
        found |= {"name": task.name, "suffix": task.suffix}
    return found


def objective_given(given: Objective | None, task: TaskSettings, chosen: Any) -> dict[str, Any]:
    """The section [objective], where it is another than a template has by itself."""
    if given is None and not isinstance(task, TaskByName):
        return {}
    return {"objective": {"kind": type(chosen).__name__, **asdict(chosen)}}


def _refused(problem: str) -> ConfigError:
    return ConfigError("finetune", [problem])
