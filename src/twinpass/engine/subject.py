"""What an engine is given to train, whichever engine it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twinpass.model.trainable import Trainable
from twinpass.reuse.base import Policy

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Subject:
    """A loaded model and where it came from, which of its weights are trained, and what is reused.

    Args:
        path: what the model was loaded from, in ``dtype``; empty for a model that was given as an object.
        lanes: how many lanes a step scores at most, without trials of other eps.
        invocation: the tokens that activate an activated adapter.
        seed: where new adapter weights come from.
        trust_remote_code: whether code that the checkpoint brings along may run.
        reload: the base checkpoint's tensors by name, for engines that go back to them.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    trainable: Trainable
    policy: Policy
    path: str
    dtype: str
    lanes: int = 2
    invocation: tuple[int, ...] = ()
    seed: int = 0
    trust_remote_code: bool = False
    reload: "Callable[[], Mapping[str, Tensor]] | None" = None
