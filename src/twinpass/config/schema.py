"""The sections of a configuration, and the kinds that each family offers."""

from collections.abc import Mapping
from dataclasses import dataclass as record
from dataclasses import field
from types import MappingProxyType
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from twinpass.config.engines import EngineSettings, SglangSettings, TorchSettings
from twinpass.config.tasks import ChoiceTask, CompletionTask, TaskSettings
from twinpass.estimate.base import Estimator
from twinpass.estimate.jvp import Jvp
from twinpass.estimate.one_sided import OneSided
from twinpass.estimate.spsa import Spsa
from twinpass.model.trainable import Activated, Full, Layers, Lora, Pattern, Trainable
from twinpass.reuse.activated import Activated as ActivatedPolicy
from twinpass.reuse.auto import Auto
from twinpass.reuse.base import Policy
from twinpass.reuse.debiased import Debiased
from twinpass.reuse.exact import Exact
from twinpass.reuse.frozen import Frozen
from twinpass.reuse.invariant import Invariant
from twinpass.reuse.reflected import Reflected
from twinpass.reuse.transported import Transported
from twinpass.schedule.adaptive import AdaptiveEpsilon
from twinpass.schedule.epsilon import ConstantEpsilon, CosineEpsilon, Epsilon, JoinedEpsilon
from twinpass.settings import STRICT, Index, Text
from twinpass.train.optimizer import Sgd


@dataclass(frozen=True, config=STRICT)
class ModelSettings:
    """``path``: a folder, hub id, .gguf file, or "smollm2" for the bundled one."""

    path: Text
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"


@dataclass(frozen=True, config=STRICT)
class RunSettings:
    """``out``: the run folder, which must be new. ``eval_every``: steps between evaluations, 0 for first and last only."""

    out: Text
    seed: Index = 0
    eval_every: Index = 0


@record(frozen=True)
class Config:
    """A whole, valid configuration. ``source`` is the file it came from, for messages."""

    model: ModelSettings
    trainable: Trainable
    task: TaskSettings
    estimator: Estimator
    optimizer: Sgd
    epsilon: Epsilon
    reuse: Policy
    engine: EngineSettings
    run: RunSettings
    source: str
    values: Mapping[str, Any]


@record(frozen=True)
class Section:
    """One section: the key that picks a kind (None: there is one kind only), and the kinds.

    ``nested`` keys hold a table, or an array of tables, of the same section again. Where a kind has a key of ``suited`` that is
    left out, it takes the value that :class:`Defaults` has by that name for what is trained.
    """

    kinds: Mapping[str, type[Any]]
    key: str | None = None
    default: str | None = None
    nested: tuple[str, ...] = ()
    suited: Mapping[str, str] = field(default_factory=dict)


SECTIONS: Mapping[str, Section] = MappingProxyType(
    {
        "model": Section({"": ModelSettings}),
        "trainable": Section(
            {"full": Full, "lora": Lora, "pattern": Pattern, "layers": Layers, "activated": Activated}, "kind"
        ),
        "task": Section({"choice": ChoiceTask, "completion": CompletionTask}, "kind", "choice"),
        "estimator": Section({"spsa": Spsa, "one_sided": OneSided, "jvp": Jvp}, "kind", "spsa"),
        "optimizer": Section(
            {"sgd": Sgd}, "kind", "sgd", suited={"lr": "lr", "steps": "steps", "batch_size": "batch_size"}
        ),
        "epsilon": Section(
            {
                "constant": ConstantEpsilon,
                "cosine": CosineEpsilon,
                "join": JoinedEpsilon,
                "adaptive": AdaptiveEpsilon,
            },
            "kind",
            "constant",
            nested=("schedules",),
            suited={"value": "eps"},
        ),
        "reuse": Section(
            {
                "auto": Auto,
                "exact": Exact,
                "invariant": Invariant,
                "activated": ActivatedPolicy,
                "reflected": Reflected,
                "transported": Transported,
                "frozen": Frozen,
                "debiased": Debiased,
            },
            "policy",
            "auto",
            nested=("inner",),
        ),
        "engine": Section({"torch": TorchSettings, "sglang": SglangSettings}, "kind", "torch"),
        "run": Section({"": RunSettings}),
    }
)
"""A new policy, estimator or schedule is one file and one entry here."""
