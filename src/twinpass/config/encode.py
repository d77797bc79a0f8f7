"""Tokenise a task for a model and what is trained on it."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinpass.model.causal import CausalModel
from twinpass.model.trainable import Activated, Trainable
from twinpass.task.activation import activation_points, common_suffix
from twinpass.task.rows import Row
from twinpass.task.template import Example, Template


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
    examples = template.encode(rows, tokenizer, CausalModel(model).window)
    invocation: tuple[int, ...] = ()
    if isinstance(trainable, Activated):
        invocation = trainable.invocation or common_suffix(examples, rows)
        examples = activation_points(examples, rows, invocation)
    return Encoded(examples[: len(train)], examples[len(train) :], invocation)
