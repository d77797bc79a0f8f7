"""Adapters' gradients out of forward passes: each module's inputs, and the head's error in the place of the module's own."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from twinpass.model.causal import CausalModel
from twinpass.model.lora import LoraWeights
from twinpass.perturb.parameters import Parameters


def fed_back(
    inputs: Mapping[str, Tensor], errors: Tensor, parameters: Parameters, adapters: Mapping[str, LoraWeights]
) -> dict[str, Tensor]:
    """The gradient by A [r, in] and B [out, r] of every adapter, by name, were the errors [N, out] those of each module's output.

    Args:
        inputs: what entered each module at the N tokens, [N, in].
    """
    found = {}
    for path, lora in adapters.items():
        a, b, x = parameters[lora.a], parameters[lora.b], inputs[path].to(parameters[lora.a])
        own = lora.scale * errors.to(b)
        found[lora.a] = (own @ b).t() @ x
        found[lora.b] = own.t() @ (x @ a.t())
    return found


def norm(gradient: Mapping[str, Tensor]) -> float:
    """The Euclidean norm of all tensors taken together."""
    return float(torch.stack([own.double().square().sum() for own in gradient.values()]).sum().sqrt())


def unfit(causal: CausalModel, adapters: Mapping[str, LoraWeights]) -> str | None:
    """Why feedback has no meaning for these adapters: one of them does not write into the residual stream. None if all do."""
    size = int(causal.model.config.get_text_config().hidden_size)
    for path in adapters:
        module = causal.model.get_submodule(path)
        if path.rsplit(".", 1)[-1] in READERS or _outputs(module) != size:
            return (
                f"trainable.targets: {path} does not write into the residual stream, which [estimator] kind 'feedback' is for; "
                "take the output projections alone, such as o_proj and down_proj"
            )
    return None


READERS = ("q_proj", "k_proj", "v_proj", "query", "key", "value", "gate_proj", "up_proj", "fc1", "dense_h_to_4h")
"""Names of layers that read the residual stream; some have as many outputs as it has."""


def _outputs(module: nn.Module) -> int:
    weight = module.get_parameter("weight")
    return int(weight.shape[1 if isinstance(module, Conv1D) else 0])
