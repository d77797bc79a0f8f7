"""Tokenise a task for a model and what is trained on it."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinpass.model.causal import CausalModel
from twinpass.model.trainable import Trainable
from twinpass.task.activation import activation_points, common_suffix, last_token
from twinpass.task.example import Example
from twinpass.task.limits import Limits
from twinpass.task.rows import Row
from twinpass.task.template import Template


@dataclass(frozen=True)
class Encoded:
    """Examples, and the tokens that activate an activated adapter (none for other weights)."""

    train: Sequence[Example]
    held_out: Sequence[Example]
    invocation: tuple[int, ...] = ()


def encode(
    template: Template,
    trainable: Trainable,
    train: Sequence[Row],
    held_out: Sequence[Row],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> Encoded:
    """Examples within the model's window; for activated adapters, all with the same tokens at the activation point.

    Raises:
        DataError: a row cannot be used.
    """
    rows = [*train, *held_out]
    causal = CausalModel(model)
    examples = template.encode(rows, tokenizer, Limits(causal.window, causal.vocabulary))
    invocation: tuple[int, ...] = ()
    if trainable.activated:
        common = last_token if trainable.late else common_suffix
        invocation = getattr(trainable, "invocation", ()) or common(examples)
        examples = activation_points(examples, invocation)
    return Encoded(examples[: len(train)], examples[len(train) :], invocation)
