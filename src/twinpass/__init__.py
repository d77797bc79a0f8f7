"""Fine-tune language models with forward passes only, and never compute the same forward work twice."""

from twinpass.api import finetune
from twinpass.errors import TwinpassError
from twinpass.estimate.jvp import Jvp
from twinpass.estimate.one_sided import OneSided
from twinpass.estimate.spsa import Spsa
from twinpass.model.trainable import Activated, Full, Layers, Lora, Pattern
from twinpass.reuse.activated import Activated as ActivatedReuse
from twinpass.reuse.auto import Auto as AutoReuse
from twinpass.reuse.debiased import Debiased as DebiasedReuse
from twinpass.reuse.exact import Exact as ExactReuse
from twinpass.reuse.frozen import Frozen as FrozenReuse
from twinpass.reuse.invariant import Invariant as InvariantReuse
from twinpass.reuse.reflected import Reflected as ReflectedReuse
from twinpass.reuse.transported import Transported as TransportedReuse
from twinpass.schedule.adaptive import AdaptiveEpsilon
from twinpass.schedule.epsilon import ConstantEpsilon, CosineEpsilon, JoinedEpsilon
from twinpass.train.optimizer import Sgd

__all__ = [
    "Activated",
    "ActivatedReuse",
    "AdaptiveEpsilon",
    "AutoReuse",
    "ConstantEpsilon",
    "CosineEpsilon",
    "DebiasedReuse",
    "ExactReuse",
    "FrozenReuse",
    "Full",
    "InvariantReuse",
    "JoinedEpsilon",
    "Jvp",
    "Layers",
    "Lora",
    "OneSided",
    "Pattern",
    "ReflectedReuse",
    "Sgd",
    "Spsa",
    "TransportedReuse",
    "TwinpassError",
    "finetune",
]
