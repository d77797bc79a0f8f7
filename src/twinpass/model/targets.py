"""Modules that adapters sit on, where they are not named: by what they are in a model."""

from collections.abc import Iterator, Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from twinpass.errors import ModelError
from twinpass.model.adapter import taken_for_experts
from twinpass.model.causal import CausalModel, outputs
from twinpass.model.defaults import WRITERS


def writing(causal: CausalModel, names: Sequence[str], first: int) -> Iterator[tuple[str, nn.Linear | Conv1D]]:
    """Those of these names in the layers from ``first`` on, by path; not experts, which see some of the tokens only."""
    inside = f"{causal.layers_path}."
    size = int(causal.model.config.get_text_config().hidden_size)
    for path, module in causal.model.named_modules():
        named = path.startswith(inside) and path.rsplit(".", 1)[-1] in names
        if not named or ".experts." in path:
            continue
        if isinstance(module, nn.Linear | Conv1D) and causal.layer_of(path) >= first and outputs(module) == size:
            yield path, module


def named(causal: CausalModel, targets: str, first: int) -> tuple[str, ...]:
    """Last parts of modules' names in the layers from ``first`` on: of what writes into the residual stream, or of all linear layers.

    What PEFT would take for experts is left out.

    Raises:
        ModelError: there are none.
    """
    linear = dict.fromkeys(path.rsplit(".", 1)[-1] for path in _linear(causal, first))
    found = (
        {path.rsplit(".", 1)[-1] for path, _ in writing(causal, WRITERS, first)}
        if targets == "outputs"
        else set(linear)
    )
    found -= taken_for_experts(causal.model, found)
    if not found:
        kinds = (
            f"none of {', '.join(WRITERS)} as wide as its residual stream"
            if targets == "outputs"
            else "no linear layer"
        )
        raise ModelError(
            f"trainable.targets {targets!r}: {type(causal.model).__name__} has {kinds} that an adapter could be kept for in layers {first} "
            f"and above; name the targets: it has {sorted(linear)}"
        )
    return tuple(name for name in linear if name in found)


def _linear(causal: CausalModel, first: int) -> Iterator[str]:
    """Paths of the decoder layers' linear layers."""
    inside = f"{causal.layers_path}."
    for path, module in causal.model.named_modules():
        if path.startswith(inside) and isinstance(module, nn.Linear | Conv1D) and causal.layer_of(path) >= first:
            yield path
