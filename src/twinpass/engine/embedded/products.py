"""Products with weights that stay as they are, by oneDNN where PyTorch has it.

PyTorch hands float32 products on x86 to MKL, which shares tall, narrow ones badly among threads: with the 96 rows of an activated step
oneDNN is faster on every layer of a small model (docs/log.md). Its operator is not public, so it is tried once, and left alone
where it is missing or wrong.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from twinpass.engine.embedded.patching import forward_of


@cache
def _onednn() -> Any:
    """The operator, or None where it does not compute the product."""
    try:
        operator = torch.ops.mkldnn._linear_pointwise
        x, weight = (torch.arange(6 * n, dtype=torch.float32).view(n, 6) for n in (2, 3))
        right = torch.equal(operator(x, weight, None, "none", [], ""), torch.mm(x, weight.t()))
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return None
    return operator if right else None


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b``: x [..., in], W [out, in], b [out]."""
    plain = x.dtype is weight.dtype is torch.float32 and x.device.type == "cpu" and weight.is_contiguous()
    if not plain or not x.numel() or torch.is_grad_enabled() or (operator := _onednn()) is None:
        return torch.nn.functional.linear(x, weight, bias)
    y: Tensor = operator(x, weight.detach(), bias, "none", [], "")
    return y


def of_linear(module: nn.Module, x: Tensor) -> Tensor:
    """What an ``nn.Linear`` returns."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    return product(x, weight, bias if isinstance(bias, Tensor) else None)


@contextmanager
def own_products(linears: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block these linear layers compute theirs by :func:`product`."""
    with ExitStack() as stack:
        for module in linears:
            if "forward" not in module.__dict__:
                stack.enter_context(forward_of(module, partial(of_linear, module)))
        yield


def is_linear(module: nn.Module) -> bool:
    """Whether the module computes what ``nn.Linear`` does, and not something of its own."""
    return type(module).forward is nn.Linear.forward
