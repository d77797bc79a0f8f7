"""Fine-tune language models with forward passes only, and never compute the same forward work twice."""

from twinpass.api import finetune
from twinpass.engine.embedded.trainable import Activated, Full, Layers, Lora, Pattern
from twinpass.errors import TwinpassError
from twinpass.estimate.spsa import Spsa
from twinpass.reuse.activated import Activated as ActivatedReuse
from twinpass.reuse.auto import Auto as AutoReuse
from twinpass.reuse.exact import Exact as ExactReuse
from twinpass.reuse.invariant import Invariant as InvariantReuse
from twinpass.schedule.epsilon import ConstantEpsilon
from twinpass.train.optimizer import Sgd

__all__ = [
    "Activated",
    "ActivatedReuse",
    "AutoReuse",
    "ConstantEpsilon",
    "ExactReuse",
    "Full",
    "InvariantReuse",
    "Layers",
    "Lora",
    "Pattern",
    "Sgd",
    "Spsa",
    "TwinpassError",
    "finetune",
]
