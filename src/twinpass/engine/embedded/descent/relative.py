"""Steps of a fixed relative length, a weight at a time, along gradients that are kept as products."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from twinpass.engine.base import RelativeStep
from twinpass.engine.embedded.descent.feedback import Outer
from twinpass.errors import ModelError
from twinpass.model.causal import CausalModel
from twinpass.perturb.parameters import Parameters


@torch.no_grad()
def move(
    causal: CausalModel, parameters: Parameters, gradient: Mapping[str, Tensor | Outer], step: RelativeStep
) -> None:
    """Move every weight ``step.length`` times its own norm against its gradient, divided by its inputs' second moments.

    Raises:
        ModelError: a gradient is no product.
    """
    for name, weight in parameters.items():
        own = gradient[name]
        if not isinstance(own, Outer):
            raise ModelError(f"{name}: relative steps are along feedback to weights; set [optimizer] kind = 'adamw'")
        along = decorrelated(own, step.damping)
        size = float(along.square.sqrt())
        if not size or not step.length:
            continue
        length = step.length * float(torch.linalg.vector_norm(weight, dtype=torch.float64))
        errors, inputs = along.errors * (-length / size), along.inputs
        turned = isinstance(causal.model.get_submodule(name.removesuffix(".weight")), Conv1D)
        left, right = (inputs, errors) if turned else (errors, inputs)
        weight.addmm_(left.t().to(weight), right.to(weight))


def decorrelated(gradient: Outer, damping: float) -> Outer:
    """``E^T X (X^T X + d I)^-1`` of a gradient ``E^T X``, with d ``damping`` times the mean square of a row of X.

    It is what a damped regression of E on X would have: inputs that all rows have in common no longer hide those that tell them apart.
    By rows it is ``E^T (X X^T + d I)^-1 X``, which is taken where there are fewer rows than inputs.
    """
    errors, inputs = gradient.errors.double(), gradient.inputs.double()
    mean = float(inputs.square().sum(1).mean())
    if not mean:
        return Outer(errors, inputs)
    by_rows = len(inputs) <= inputs.shape[1]
    moments = inputs @ inputs.t() if by_rows else inputs.t() @ inputs
    moments.diagonal().add_(damping * mean)
    return Outer(
        errors, torch.linalg.solve(moments, inputs) if by_rows else torch.linalg.solve(moments, inputs.t()).t()
    )
