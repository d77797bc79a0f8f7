"""Fine-tune language models, by forward passes only (MeZO) or the gradient of the answer's tokens, and never compute the same forward work twice."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twinpass.api import finetune, load_model
    from twinpass.errors import TwinpassError
    from twinpass.estimate.backprop import Backprop
    from twinpass.estimate.feedback import Feedback
    from twinpass.estimate.gauss_newton import GaussNewton
    from twinpass.estimate.jvp import Jvp
    from twinpass.estimate.line import LineSearch
    from twinpass.estimate.one_sided import OneSided
    from twinpass.estimate.spsa import Spsa
    from twinpass.model.projections import Projections
    from twinpass.model.trainable import Activated, Full, Informed, Layers, Lora, Pattern
    from twinpass.objective.accuracy import Accuracy
    from twinpass.objective.choice import Choice
    from twinpass.objective.completion import Completion
    from twinpass.objective.expected_accuracy import ExpectedAccuracy
    from twinpass.objective.generation import Generation
    from twinpass.objective.reward_models import RewardModel
    from twinpass.report.callbacks import Callbacks
    from twinpass.reuse.activated import ActivatedReuse
    from twinpass.reuse.auto import Auto as AutoReuse
    from twinpass.reuse.debiased import Debiased as DebiasedReuse
    from twinpass.reuse.exact import Exact as ExactReuse
    from twinpass.reuse.frozen import Frozen as FrozenReuse
    from twinpass.reuse.invariant import Invariant as InvariantReuse
    from twinpass.reuse.reflected import Reflected as ReflectedReuse
    from twinpass.reuse.transported import Transported as TransportedReuse
    from twinpass.schedule.adaptive import AdaptiveEpsilon
    from twinpass.schedule.epsilon import ConstantEpsilon, CosineEpsilon, JoinedEpsilon
    from twinpass.train.adamw import AdamW
    from twinpass.train.normalised import Normalised
    from twinpass.train.optimizer import Sgd
    from twinpass.train.relative import Relative
    from twinpass.train.sign import Sign
    from twinpass.use.trained import TrainedModel, load

    __version__: str

__all__ = [
    "Accuracy",
    "Activated",
    "ActivatedReuse",
    "AdamW",
    "AdaptiveEpsilon",
    "AutoReuse",
    "Backprop",
    "Callbacks",
    "Choice",
    "Completion",
    "ConstantEpsilon",
    "CosineEpsilon",
    "DebiasedReuse",
    "ExactReuse",
    "ExpectedAccuracy",
    "Feedback",
    "FrozenReuse",
    "Full",
    "GaussNewton",
    "Generation",
    "Informed",
    "InvariantReuse",
    "JoinedEpsilon",
    "Jvp",
    "Layers",
    "LineSearch",
    "Lora",
    "Normalised",
    "OneSided",
    "Pattern",
    "Projections",
    "ReflectedReuse",
    "Relative",
    "RewardModel",
    "Sgd",
    "Sign",
    "Spsa",
    "TrainedModel",
    "TransportedReuse",
    "TwinpassError",
    "__version__",
    "finetune",
    "load",
    "load_model",
]

_MODULES = {
    "api": ("finetune", "load_model"),
    "errors": ("TwinpassError",),
    "estimate.backprop": ("Backprop",),
    "estimate.feedback": ("Feedback",),
    "estimate.gauss_newton": ("GaussNewton",),
    "estimate.jvp": ("Jvp",),
    "estimate.line": ("LineSearch",),
    "estimate.one_sided": ("OneSided",),
    "estimate.spsa": ("Spsa",),
    "model.projections": ("Projections",),
    "model.trainable": ("Activated", "Full", "Informed", "Layers", "Lora", "Pattern"),
    "objective.accuracy": ("Accuracy",),
    "objective.choice": ("Choice",),
    "objective.completion": ("Completion",),
    "objective.expected_accuracy": ("ExpectedAccuracy",),
    "objective.generation": ("Generation",),
    "objective.reward_models": ("RewardModel",),
    "report.callbacks": ("Callbacks",),
    "reuse.activated": ("ActivatedReuse",),
    "reuse.auto": ("AutoReuse",),
    "reuse.debiased": ("DebiasedReuse",),
    "reuse.exact": ("ExactReuse",),
    "reuse.frozen": ("FrozenReuse",),
    "reuse.invariant": ("InvariantReuse",),
    "reuse.reflected": ("ReflectedReuse",),
    "reuse.transported": ("TransportedReuse",),
    "schedule.adaptive": ("AdaptiveEpsilon",),
    "schedule.epsilon": ("ConstantEpsilon", "CosineEpsilon", "JoinedEpsilon"),
    "train.adamw": ("AdamW",),
    "train.normalised": ("Normalised",),
    "train.optimizer": ("Sgd",),
    "train.relative": ("Relative",),
    "train.sign": ("Sign",),
    "use.trained": ("TrainedModel", "load"),
}
"""Where names come from: each is imported when it is first used (PEP 562). A policy is called ``...Reuse`` here."""

_HOMES = {name: module for module, names in _MODULES.items() for name in names}


if not TYPE_CHECKING:  # with it, type checkers would take any name

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("twinpass")
        if name not in _HOMES:
            raise AttributeError(f"module 'twinpass' has no attribute {name!r}")
        module = import_module(f"twinpass.{_HOMES[name]}")
        from twinpass.settings import public

        value = public(getattr(module, name if hasattr(module, name) else name.removesuffix("Reuse")))
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
