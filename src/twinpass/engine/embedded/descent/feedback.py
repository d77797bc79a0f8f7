"""Gradients out of forward passes: each module's inputs, and the head's error in the place of the module's own."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from twinpass.engine.embedded.linear.products import Linear, own_products
from twinpass.model.causal import CausalModel, outputs, scattered
from twinpass.model.trainable import Trained


@dataclass(frozen=True, slots=True)
class Outer:
    """A gradient that is not kept as a whole, of a linear layer's weight: ``errors``^T ``inputs``, [N, out] and [N, in] at N tokens."""

    errors: Tensor
    inputs: Tensor

    @property
    def square(self) -> Tensor:
        """The sum of its squares."""
        errors, inputs = self.errors.double(), self.inputs.double()
        if len(errors) ** 2 <= errors.shape[1] * inputs.shape[1]:
            return ((errors @ errors.t()) * (inputs @ inputs.t())).sum()
        return (errors.t() @ inputs).square().sum()


def fed_back(inputs: Mapping[str, Tensor], errors: Mapping[str, Tensor], trained: Trained) -> dict[str, Tensor | Outer]:
    """The gradient by what is trained, by name: the A [r, in] and B [out, r] of every adapter, or the weights of modules themselves.

    Args:
        inputs: what entered each module at the N tokens, [N, in].
        errors: what is taken for the derivative by each module's output, [N, out].
    """
    if not trained.adapters:
        return {f"{path}.weight": Outer(errors[path], x) for path, x in inputs.items()}
    found: dict[str, Tensor | Outer] = {}
    for path, lora in trained.loras.items():
        a, b, x = trained.parameters[lora.a], trained.parameters[lora.b], inputs[path].to(trained.parameters[lora.a])
        own = lora.scale * errors[path].to(b)
        found[lora.a] = (own @ b).t() @ x
        found[lora.b] = own.t() @ (x @ a.t())
    return found


def norm(gradient: Mapping[str, Tensor | Outer]) -> float:
    """The Euclidean norm of all tensors taken together."""
    squares = [own.square if isinstance(own, Outer) else own.double().square().sum() for own in gradient.values()]
    return float(torch.stack(squares).sum().sqrt())


def fed(trained: Trained) -> tuple[str, ...]:
    """The paths of modules that errors are fed back to: those that adapters stand beside, or whose weights are trained."""
    return tuple(trained.adapters) or tuple(name.removesuffix(".weight") for name in trained.parameters)


def unfit(causal: CausalModel, trained: Trained) -> str | None:
    """Why feedback has no meaning for what is trained: some of it does not write into the residual stream. None if all does."""
    size = int(causal.model.config.get_text_config().hidden_size)
    modules, kind = dict(causal.model.named_modules()), "targets" if trained.adapters else "kind"
    owners = [own for module in modules.values() for own in module._parameters.values()]
    for path in fed(trained):
        module = modules.get(path)
        linear = isinstance(module, nn.Linear | Conv1D)
        if module is None or not linear or path.rsplit(".", 1)[-1] in READERS or outputs(module) != size:
            return (
                f"trainable.{kind}: {path} does not write into the residual stream, which [estimator] kind 'feedback' is for; "
                "take the output projections alone, such as o_proj and down_proj"
            )
        if not trained.adapters and sum(own is module.get_parameter("weight") for own in owners) > 1:
            return (
                f"trainable.kind: {path} shares its weight with another module, and feedback tells what entered one of them; "
                "take [estimator] kind 'spsa'"
            )
    return None


def unfinished(causal: CausalModel, linear: Linear | None) -> str | None:
    """Why a model that packs has no error to feed back; None: it has one. ``linear`` is how its layers multiply, if in a way of their own."""
    with own_products(causal.linears, linear):  # weights may be prepacked by now
        return None if causal.finishes else f"[estimator] kind 'feedback': {scattered(causal)}; take 'spsa' instead"


READERS = ("q_proj", "k_proj", "v_proj", "query", "key", "value", "gate_proj", "up_proj", "fc1", "dense_h_to_4h")
"""Names of layers that read the residual stream; some have as many outputs as it has."""
