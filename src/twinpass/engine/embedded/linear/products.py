"""Products with weights that stay as they are, by oneDNN where PyTorch has it.

PyTorch hands float32 products on x86 to MKL, which shares tall, narrow ones badly among threads: with the 96 rows of an activated step
oneDNN is faster on every layer of a small model (docs/log.md), and faster still on weights that are prepacked: held in the order that it reads them in.
Its operators are not public, so they are tried once, and left alone where they are missing or wrong.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from twinpass.model.causal import is_linear
from twinpass.model.patching import forwards_of
from twinpass.phases import phase

KEPT = 32
"""oneDNN compiles a product anew for every number of rows, and no two batches are alike: of a thousand that two of its caches keep by
default, each takes up to some megabytes. A pass needs a dozen."""

for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, str(KEPT))

Linear = Callable[[nn.Module, Tensor], Tensor]
"""What a linear layer returns for rows [..., in]."""

PREPACKED_FOR = 256
"""Rows of a product that weights are prepacked for."""


@cache
def _onednn(dtype: torch.dtype) -> Any:
    """The operator, or None where it does not compute the product."""
    try:
        operator = torch.ops.mkldnn._linear_pointwise
        x, weight = (torch.arange(6 * n, dtype=dtype).view(n, 6) for n in (2, 3))
        right = torch.equal(operator(x, weight, None, "none", [], ""), torch.mm(x, weight.t()))
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return None
    return operator if right else None


@cache
def _prepack(dtype: torch.dtype) -> Any:
    """The operator that prepacks a weight, or None where it changes one, or products with it."""
    if (operator := _onednn(dtype)) is None:
        return None
    try:
        prepack = torch.ops.mkldnn._reorder_linear_weight
        x, weight = (torch.arange(6 * n, dtype=dtype).view(n, 6) for n in (2, 3))
        reordered = prepack(weight, PREPACKED_FOR)
        same = torch.equal(operator(x, reordered, None, "none", [], ""), torch.mm(x, weight.t()))
        right = same and _is_prepacked(reordered) and torch.equal(reordered.to_dense(), weight)
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return None
    return prepack if right else None


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b``: x [..., in], W [out, in], plain or prepacked, b [out]."""
    if _is_prepacked(weight):
        if not x.numel() or torch.is_grad_enabled() or x.dtype is not weight.dtype:
            return torch.nn.functional.linear(x, weight.to_dense(), bias)
        found: Tensor = _onednn(x.dtype)(x, weight.detach(), bias, "none", [], "")
        return found
    plain = x.dtype is weight.dtype is torch.float32 and x.device.type == "cpu" and weight.is_contiguous()
    if not plain or not x.numel() or torch.is_grad_enabled() or (operator := _onednn(x.dtype)) is None:
        return torch.nn.functional.linear(x, weight, bias)
    y: Tensor = operator(x, weight.detach(), bias, "none", [], "")
    return y


def rounded_product(x: Tensor, weight: Tensor) -> Tensor:
    """``x W^T`` in float32 of what rows x [..., in] are in bfloat16, by W [out, in] in bfloat16, plain or prepacked.

    oneDNN takes several times as long to compile a product of tiles as to multiply, so that rows are filled up to few numbers of them.
    """
    rows = x.numel() // x.shape[-1]
    low = torch.empty((filled(rows), x.shape[-1]), dtype=torch.bfloat16)
    low[:rows].copy_(x.reshape(rows, -1))
    low[rows:].zero_()
    return product(low, weight)[:rows].float().view(*x.shape[:-1], -1)


def filled(rows: int) -> int:
    """The next of eight numbers to each power of two, and of multiples of 16: at most an eighth, or 15, more."""
    step = max(16, 1 << max(0, rows.bit_length() - 4))
    return -(-rows // step) * step


@phase("linear")
def of_linear(module: nn.Module, x: Tensor) -> Tensor:
    """What an ``nn.Linear`` returns."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    return product(x, weight, bias if isinstance(bias, Tensor) else None)


@contextmanager
def own_products(linears: Iterable[nn.Module], linear: Linear | None = None) -> Iterator[None]:
    """Inside the block these linear layers compute theirs by ``linear``; by :func:`product` if there is none."""
    own = linear or of_linear
    with forwards_of({module: partial(own, module) for module in linears if "forward" not in module.__dict__}):
        yield


def _is_prepacked(weight: Tensor) -> bool:
    return weight.layout is torch._mkldnn  # type: ignore[attr-defined]


def prepacked(weight: Tensor) -> Tensor:
    """A weight [out, in], float32 or bfloat16, in the order that oneDNN reads it in, where it has one; itself otherwise."""
    if _is_prepacked(weight) or not _is_plain(weight) or (prepack := _prepack(weight.dtype)) is None:
        return weight
    reordered: Tensor = prepack(weight, PREPACKED_FOR)
    return reordered


class Prepacked:
    """Float32 weights of linear layers, held in the order that oneDNN reads them in: a weight takes no memory twice.

    They come back to the bit. The layers must run inside :func:`own_products` while they are prepacked.

    Args:
        model: the model, none of whose weights is trained; those that several of its modules use stay plain.
        head: a layer that stays as it is.
        low: whether they are rounded to bfloat16, with what that leaves out beside them: the same memory again.
    """

    def __init__(self, model: nn.Module, head: nn.Module | None, *, low: bool = False) -> None:
        self._model, self._low = model, low
        self._left: dict[nn.Module, Tensor] = {}
        uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))

        def can_be(module: nn.Module) -> bool:
            return (
                is_linear(module)
                and uses[id(module.weight)] == 1
                and _can_be_prepacked(module.weight)
                and module is not head
            )

        self._modules = [module for module in model.modules() if can_be(module)]

    def pack(self) -> None:
        """Prepack the weights, one at a time.

        The others are copied, so that none keeps the file in memory that all of them may have been mapped from.
        """
        if not self._modules:
            return
        for module in self._modules:
            weight = _weight(module)
            if self._low and weight.dtype is torch.float32:
                weight, self._left[module] = halved(weight)
            _replace(module, prepacked(weight))
        held = {id(_weight_of(module)) for module in self._modules}
        for parameter in self._model.parameters():
            if id(parameter) not in held:
                parameter.data = parameter.data.clone()

    def unpack(self) -> None:
        """Make them plain again."""
        for module in self._modules:
            weight = _weight(module)
            if (left := self._left.pop(module, None)) is not None:
                _replace(module, whole(weight.to_dense() if _is_prepacked(weight) else weight, left))
            elif _is_prepacked(weight):
                _replace(module, weight.to_dense())


def halved(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A float32 weight rounded to the nearest bfloat16 (ties away from zero), and the rest of its bits in int16."""
    bits = weight.view(torch.int32)
    upper = (bits + 0x8000) >> 16
    return upper.to(torch.int16).view(torch.bfloat16), (bits - (upper << 16)).to(torch.int16)


def whole(upper: Tensor, rest: Tensor) -> Tensor:
    """The weight that :func:`halved` made two of."""
    return ((upper.contiguous().view(torch.int16).to(torch.int32) << 16) + rest).view(torch.float32)


def _weight_of(module: nn.Module) -> nn.Parameter:
    return module.get_parameter("weight")


def _weight(module: nn.Module) -> Tensor:
    return _weight_of(module).detach()


def _can_be_prepacked(weight: Any) -> bool:
    return weight.dtype is torch.float32 and _is_plain(weight)


def _is_plain(weight: Any) -> bool:
    known = weight.dtype in (torch.float32, torch.bfloat16)
    return known and weight.device.type == "cpu" and weight.layout is torch.strided


def _replace(module: nn.Module, weight: Tensor) -> None:
    module.weight = nn.Parameter(weight, requires_grad=module.get_parameter("weight").requires_grad)
