"""Fine-tune language models with forward passes only, and never compute the same forward work twice."""

from twinpass.api import finetune
from twinpass.engine.embedded.trainable import Full, Layers, Lora, Pattern
from twinpass.errors import TwinpassError
from twinpass.estimate.spsa import Spsa
from twinpass.schedule.epsilon import ConstantEpsilon
from twinpass.train.optimizer import Sgd

__all__ = [
    "ConstantEpsilon",
    "Full",
    "Layers",
    "Lora",
    "Pattern",
    "Sgd",
    "Spsa",
    "TwinpassError",
    "finetune",
]
