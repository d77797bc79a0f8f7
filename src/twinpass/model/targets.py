"""Modules that adapters sit on, where they are not named: by what they are in a model."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from twinpass.errors import ModelError
from twinpass.model.adapter import lost_by_peft, reshaped_names
from twinpass.model.causal import CausalModel, is_linear, outputs
from twinpass.model.defaults import ATTENTION, OUTPUTS, WRITERS

READ_PAST = {"dt_proj"}
"""Layers of Mamba that are never called: their weight alone is read, so that an adapter would not act."""

ASIDE = ("indexer", "compressor")
"""Parts of attention that choose or sum up what is far away, and have nothing to do in a short text."""


def writing(causal: CausalModel, names: Sequence[str], first: int) -> Iterator[tuple[str, nn.Linear | Conv1D]]:
    """Those of these names in the layers from ``first`` on, by path; not experts, which see some of the tokens only."""
    inside = f"{causal.layers_path}."
    size = int(causal.model.config.get_text_config().hidden_size)
    for path, module in causal.model.named_modules():
        named = path.startswith(inside) and path.rsplit(".", 1)[-1] in names
        if not named or ".experts." in path or not causal.reads_text(path):
            continue
        if isinstance(module, nn.Linear | Conv1D) and causal.layer_of(path) >= first and outputs(module) == size:
            yield path, module


def named(causal: CausalModel, targets: str, first: int, *, activated: bool) -> tuple[str, ...]:
    """Last parts of modules' names in the layers from ``first`` on: of what writes into the residual stream, or of all linear layers.

    What PEFT would not put back is left out, and where the adapter is ``activated``, what it could not activate. Of a model without
    attention (Mamba), whose output projections PEFT does not take, both stand for all linear layers.

    Raises:
        ModelError: there are none.
    """
    linear = tuple(_linear(causal, first))
    writers = targets == "outputs" and any(map(_in_attention, linear))
    paths = (path for path, _ in writing(causal, WRITERS, first)) if writers else linear
    found = _kept(causal, paths, activated=activated)
    if not found:
        kinds = (
            f"none of {', '.join(WRITERS)} as wide as its residual stream"
            if targets == "outputs"
            else "no linear layer"
        )
        raise ModelError(
            f"trainable.targets {targets!r}: {type(causal.model).__name__} has {kinds} that an adapter could be kept for in layers {first} "
            f"and above; name the targets: it has {sorted({path.rsplit('.', 1)[-1] for path in linear})}"
        )
    return found


def named_so(causal: CausalModel, targets: tuple[str, ...], *, activated: bool) -> tuple[str, ...]:
    """The targets; where they are attention's usual names and a model has others, those, or all linear layers of one without attention."""
    paths = [path for path, module in causal.model.named_modules() if causal.reads_text(path) and _plain(module)]
    if targets != ATTENTION or set(targets) <= {path.rsplit(".", 1)[-1] for path in paths}:
        return targets
    attention = [*filter(_in_attention, paths)]
    return _kept(causal, attention or _linear(causal, 0), activated=activated) or targets


def written_so(causal: CausalModel, targets: tuple[str, ...], first: int) -> tuple[str, ...]:
    """The same of the usual names of what writes into the residual stream, and where PEFT would lose one of them."""
    if targets != OUTPUTS:
        return targets
    present = {path.rsplit(".", 1)[-1] for path in _linear(causal, first)}
    if set(targets) <= present and not lost_by_peft(causal.model, targets):
        return targets
    return _kept(causal, (path for path, _ in writing(causal, WRITERS, first)), activated=True) or targets


def _kept(causal: CausalModel, paths: Iterable[str], *, activated: bool) -> tuple[str, ...]:
    """Last parts of these paths, but for those that PEFT would not put back, or not activate."""
    found = dict.fromkeys(path.rsplit(".", 1)[-1] for path in paths)
    lost = lost_by_peft(causal.model, found) | (reshaped_names(causal, found) if activated else set())
    return tuple(name for name in found if name not in lost | READ_PAST)


def _in_attention(path: str) -> bool:
    *above, _ = path.lower().split(".")
    return any("attn" in part or "attention" in part for part in above) and not any(part in ASIDE for part in above)


def _linear(causal: CausalModel, first: int) -> Iterator[str]:
    """Paths of the decoder layers' linear layers."""
    inside = f"{causal.layers_path}."
    for path, module in causal.model.named_modules():
        if not path.startswith(inside) or not causal.reads_text(path):
            continue
        if _plain(module) and causal.layer_of(path) >= first:
            yield path


def _plain(module: nn.Module) -> bool:
    """Whether a linear layer returns a product and nothing else: some children of ``nn.Linear`` do (Falcon's), and routers may not."""
    if not isinstance(module, nn.Linear) or is_linear(module):
        return isinstance(module, nn.Linear | Conv1D)
    weight = module.weight
    try:
        with torch.no_grad():
            found: Any = module(weight.new_zeros(1, 2, weight.shape[1]))
    except Exception:  # any model's own code runs here
        return False
    return isinstance(found, Tensor) and found.shape == (1, 2, weight.shape[0])
