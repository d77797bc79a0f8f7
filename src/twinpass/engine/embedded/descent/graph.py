"""A model whose scores have a graph: only what is trained is differentiated, everything else stays as it is.

Keys and values from the cache enter without a graph, so that it holds the rows of the pass and nothing of their prompts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from twinpass.engine.embedded.linear.lanes import LaneLayout
from twinpass.engine.embedded.linear.mixed import Paired
from twinpass.engine.embedded.linear.products import Linear, product, rounded_product
from twinpass.model.causal import CausalModel, output_layer
from twinpass.model.lora import LoraWeights
from twinpass.model.patching import forward_of
from twinpass.model.trainable import Trained
from twinpass.perturb.parameters import Parameters


@dataclass(frozen=True)
class Graph:
    """What is trained of a model, as leaves of a graph.

    Args:
        leaves: the trained tensors by name; they share the memory that is trained.
        adapters: adapters among them by the path of the module that they stand beside.
    """

    causal: CausalModel
    leaves: Mapping[str, Tensor]
    adapters: Mapping[str, LoraWeights]

    @classmethod
    @contextmanager
    def of(cls, causal: CausalModel, parameters: Parameters, adapters: Mapping[str, LoraWeights]) -> "Iterator[Graph]":
        """Inside the block nothing of the model is differentiated but what is trained."""
        before = [(parameter, parameter.requires_grad) for parameter in causal.model.parameters()]
        try:
            for parameter, _ in before:
                parameter.requires_grad_(False)
            own = (lambda name: parameters[name].detach()) if adapters else causal.model.get_parameter
            yield cls(causal, {name: own(name).requires_grad_() for name in parameters}, adapters)
        finally:
            for parameter, differentiated in before:
                parameter.requires_grad_(differentiated)

    @contextmanager
    def running(self, layout: LaneLayout) -> Iterator[None]:
        """Inside the block the model runs with its adapters, and its head makes the logits of the layout's columns."""
        model = self.causal.model
        with ExitStack() as stack:
            for path, lora in self.adapters.items():
                module = model.get_submodule(path)
                weights = (self.leaves[lora.a], self.leaves[lora.b], lora.scale)
                stack.enter_context(forward_of(module, partial(_adapted, module.forward, weights, layout)))
            head = output_layer(model)
            if layout.columns is not None and head is not None:
                stack.enter_context(forward_of(head, partial(_some_logits, head, layout.columns)))
            yield

    def gradient(self, scores: Sequence[Tensor], slopes: Sequence[Tensor]) -> dict[str, Tensor]:
        """The sum of each score's gradient, times its slope, by name; without those that no score depends on."""
        traced = [(own, slope) for own, slope in zip(scores, slopes, strict=True) if own.requires_grad]
        if not traced:
            return {}
        depending, along = zip(*traced, strict=True)
        found = torch.autograd.grad(depending, list(self.leaves.values()), along, allow_unused=True)
        return {name: own for name, own in zip(self.leaves, found, strict=True) if own is not None}


def no_gradient(trained: Trained, paired: Paired | None, *, walking: bool) -> str | None:
    """Why no gradient can be taken of what is trained, by any way; None: it can be. ``walking``: weights walk from lane to lane."""
    if walking:
        return "gradients are of weights as they are: leave perturbation = 'inplace' out"
    if paired is not None and not trained.adapters:
        return "products in bfloat16 round weights as they are multiplied: leave compute_dtype out, or train adapters"
    return None


def linear_by(paired: Paired | None) -> Linear:
    """How layers multiply where there is a graph: as they do without one."""
    return linear if paired is None else partial(_linear_in_bfloat16, paired)


def linear(module: nn.Module, x: Tensor) -> Tensor:
    """What a linear layer returns, differentiable by ``x``, and by its weight if that is trained."""
    weight, bias = module.get_parameter("weight"), module.bias
    own_bias = bias if isinstance(bias, Tensor) else None
    if weight.requires_grad or (own_bias is not None and own_bias.requires_grad):
        return nn.functional.linear(x, weight, own_bias)
    result: Tensor = _Product.apply(x, weight, own_bias)  # type: ignore[no-untyped-call]
    return result


class _Product(torch.autograd.Function):
    """``x W^T + b`` by the product that scoring uses, for a weight that stays as it is, plain or prepacked."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        weight: Tensor = ctx.weight.detach()
        return gradients[0] @ (weight if weight.layout is torch.strided else weight.to_dense()), None, None


def _linear_in_bfloat16(paired: Paired, module: nn.Module, x: Tensor) -> Tensor:
    weight = paired.rounded(module)
    if weight is None:
        return linear(module, x)
    y: Tensor = _RoundedProduct.apply(x, weight)  # type: ignore[no-untyped-call]
    return y + module.bias if isinstance(module.bias, Tensor) else y


class _RoundedProduct(torch.autograd.Function):
    """``x W^T`` of float32 rows and a frozen weight in bfloat16; the gradient that comes back is rounded like the rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return rounded_product(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        weight: Tensor = ctx.weight.detach()
        dense = weight if weight.layout is torch.strided else weight.to_dense()
        return rounded_product(gradients[0], dense.t()), None


def _adapted(
    original: Callable[[Tensor], Tensor], weights: tuple[Tensor, Tensor, float], layout: LaneLayout, x: Tensor
) -> Tensor:
    a, b, scale = weights
    y = original(x)
    down = x.to(a.dtype) @ a.t()
    if layout.active_from:
        acts = torch.arange(layout.rows, device=x.device) >= layout.active_from
        down = (down.view(-1, layout.rows, down.shape[-1]) * acts[:, None].to(a.dtype)).view(down.shape)
    return y + (scale * (down @ b.t())).to(y.dtype)


def _some_logits(head: nn.Module, columns: Tensor, x: Tensor) -> Tensor:
    bias = head.bias
    own = bias[columns] if isinstance(bias, Tensor) else None
    return nn.functional.linear(x, head.get_parameter("weight")[columns], own)
