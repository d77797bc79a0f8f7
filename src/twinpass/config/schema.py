"""The sections of a configuration, and the kinds that each family offers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass as record
from dataclasses import field
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from twinpass.config.engines import EngineSettings
from twinpass.config.learner import chosen, stepping
from twinpass.config.registry import Family
from twinpass.config.tasks import TaskSettings, kind_of
from twinpass.estimate.base import Estimator
from twinpass.model.trainable import Trainable
from twinpass.objective.base import Objective
from twinpass.objective.generation import Generation
from twinpass.report.trackers import TrackerName, several
from twinpass.reuse.base import Policy
from twinpass.schedule.epsilon import Epsilon
from twinpass.settings import STRICT, Index, NonEmpty, Positive
from twinpass.train.history import Keep
from twinpass.train.optimizer import Optimizer


@dataclass(frozen=True, config=STRICT)
class ModelSettings:
    """``path``: a folder or .gguf file (relative to the configuration's), hub id, or "smollm2" for the bundled one.

    Weights are held in ``dtype``, whatever the checkpoint has. Python code that it brings along runs only with ``trust_remote_code``.
    """

    path: NonEmpty
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    trust_remote_code: bool = False


@dataclass(frozen=True, config=STRICT)
class RunSettings:
    """``out``: the run folder, which must be new. ``eval_every``: steps between evaluations, 0 for first and last only.

    ``seed``: what all of a run's chance is drawn from: held-out rows, batches, directions, sampled texts.
    ``keep``: the weights that are left are those of the "best" evaluation, the later of equal ones, or the "last".
    ``patience``: stop once so many evaluations came to no more than one before them; 0: never. With optimizer.schedule "plateau" the learning rate falls
    then, and the third time the run stops.
    ``max_seconds``: stop after so many seconds of steps and evaluations; resumed, a run goes on for as long again.
    ``report_to``: trackers that are told of steps and evaluations, "tensorboard", "wandb" and "trackio".
    """

    out: NonEmpty
    seed: Index = 0
    eval_every: Index = 0
    keep: Keep = "best"
    patience: Index = 0
    max_seconds: Positive | None = None
    report_to: Annotated[tuple[TrackerName, ...], Field(strict=False), BeforeValidator(several)] = ()


@record(frozen=True)
class Config:
    """A whole, valid configuration. ``source`` is the file it came from, for messages; ``reason`` why this is trained, where it does not say."""

    model: ModelSettings
    trainable: Trainable
    task: TaskSettings
    generation: Generation | None
    objective: Objective | None
    estimator: Estimator
    optimizer: Optimizer
    epsilon: Epsilon
    reuse: Policy
    engine: EngineSettings
    run: RunSettings
    source: str
    values: Mapping[str, Any]
    reason: str = ""


@record(frozen=True)
class Section:
    """One section: the key that picks a kind (None: there is one kind only), and the kinds.

    ``default`` is the kind where none is named, or finds it by the sections that are built already and by the given values; an ``optional`` section may be left out altogether, and is None then.
    ``nested`` keys hold a table, or an array of tables, of the same section again. Where a kind has a key of ``suited`` that is
    left out, it takes the value that :class:`Defaults` has by that name for what is trained, unless those are meant for another kind
    (``along_probes``), it is the lr of a ``scale_free`` kind, or :class:`Defaults` has none; so does the kind, by ``suited_kind``.
    Keys that go ``together`` do so only where all of them are left out.
    """

    kinds: Mapping[str, type[Any]]
    key: str | None = None
    default: str | Callable[[Mapping[str, Any], Mapping[str, Any]], str] | None = None
    nested: tuple[str, ...] = ()
    suited: Mapping[str, str] = field(default_factory=dict)
    together: bool = False
    optional: bool = False
    suited_kind: str | None = None


SECTIONS: Mapping[str, Section] = MappingProxyType(
    {
        "model": Section({"": ModelSettings}),
        "task": Section(
            Family(
                "twinpass.config.tasks:TaskSettings",
                "twinpass.tasks",
                {
                    "auto": "twinpass.config.tasks:AutoTask",
                    "choice": "twinpass.config.tasks:ChoiceTask",
                    "completion": "twinpass.config.tasks:CompletionTask",
                    "chat": "twinpass.config.tasks:ChatTask",
                    "named": "twinpass.config.named:TaskByName",
                    "reward": "twinpass.config.reward:RewardTask",
                },
            ),
            "kind",
            lambda built, values: kind_of(values.get("task", {})),
        ),
        "trainable": Section(
            Family(
                "twinpass.model.trainable:Trainable",
                "twinpass.trainables",
                {
                    "full": "twinpass.model.trainable:Full",
                    "lora": "twinpass.model.trainable:Lora",
                    "pattern": "twinpass.model.trainable:Pattern",
                    "layers": "twinpass.model.trainable:Layers",
                    "activated": "twinpass.model.trainable:Activated",
                    "informed": "twinpass.model.trainable:Informed",
                    "projections": "twinpass.model.projections:Projections",
                },
            ),
            "kind",
            lambda built, values: chosen(built.get("task"), values).trainable,
            suited={"targets": "targets", "first": "first"},
            together=True,
        ),
        "generation": Section({"": Generation}, optional=True),
        "objective": Section(
            Family(
                "twinpass.objective.base:Objective",
                "twinpass.objectives",
                {
                    "choice": "twinpass.objective.choice:Choice",
                    "accuracy": "twinpass.objective.accuracy:Accuracy",
                    "expected_accuracy": "twinpass.objective.expected_accuracy:ExpectedAccuracy",
                    "completion": "twinpass.objective.completion:Completion",
                },
            ),
            "kind",
            optional=True,
        ),
        "estimator": Section(
            Family(
                "twinpass.estimate.base:Estimator",
                "twinpass.estimators",
                {
                    "spsa": "twinpass.estimate.spsa:Spsa",
                    "one_sided": "twinpass.estimate.one_sided:OneSided",
                    "jvp": "twinpass.estimate.jvp:Jvp",
                    "line": "twinpass.estimate.line:LineSearch",
                    "gauss_newton": "twinpass.estimate.gauss_newton:GaussNewton",
                    "backprop": "twinpass.estimate.backprop:Backprop",
                    "feedback": "twinpass.estimate.feedback:Feedback",
                },
            ),
            "kind",
            suited={"probes": "probes"},
            suited_kind="estimator",
        ),
        "optimizer": Section(
            Family(
                "twinpass.train.optimizer:Optimizer",
                "twinpass.optimizers",
                {
                    "sgd": "twinpass.train.optimizer:Sgd",
                    "sign": "twinpass.train.sign:Sign",
                    "normalised": "twinpass.train.normalised:Normalised",
                    "adamw": "twinpass.train.adamw:AdamW",
                    "relative": "twinpass.train.relative:Relative",
                },
            ),
            "kind",
            lambda built, values: stepping(built.get("estimator"), built.get("trainable")),
            suited={"lr": "lr", "steps": "steps", "batch_size": "batch_size", "schedule": "schedule"},
        ),
        "epsilon": Section(
            Family(
                "twinpass.schedule.epsilon:Epsilon",
                "twinpass.schedules",
                {
                    "constant": "twinpass.schedule.epsilon:ConstantEpsilon",
                    "cosine": "twinpass.schedule.epsilon:CosineEpsilon",
                    "join": "twinpass.schedule.epsilon:JoinedEpsilon",
                    "adaptive": "twinpass.schedule.adaptive:AdaptiveEpsilon",
                },
            ),
            "kind",
            "constant",
            nested=("schedules",),
            suited={"value": "eps"},
        ),
        "reuse": Section(
            Family(
                "twinpass.reuse.base:Policy",
                "twinpass.policies",
                {
                    "auto": "twinpass.reuse.auto:Auto",
                    "exact": "twinpass.reuse.exact:Exact",
                    "invariant": "twinpass.reuse.invariant:Invariant",
                    "activated": "twinpass.reuse.activated:ActivatedReuse",
                    "reflected": "twinpass.reuse.reflected:Reflected",
                    "transported": "twinpass.reuse.transported:Transported",
                    "frozen": "twinpass.reuse.frozen:Frozen",
                    "debiased": "twinpass.reuse.debiased:Debiased",
                },
            ),
            "policy",
            "auto",
            nested=("inner",),
        ),
        "engine": Section(
            Family(
                "twinpass.config.engines:EngineSettings",
                "twinpass.engines",
                {
                    "torch": "twinpass.config.engines:TorchSettings",
                    "sglang": "twinpass.config.engines:SglangSettings",
                },
            ),
            "kind",
            "torch",
        ),
        "run": Section({"": RunSettings}, suited={"eval_every": "eval_every", "patience": "patience"}),
    }
)
"""A new kind is one file and one line here, or an entry point of another package (docs/extending.md)."""
