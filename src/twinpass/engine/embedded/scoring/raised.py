"""Run any model in float64 without a copy of it, so that two ways to compute the same differ by what they compute alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

BLOCK_ELEMENTS = 1 << 16
"""How many elements of a linear layer's weight [out, in] are in float64 at a time."""

_LOWER = (torch.float32, torch.bfloat16, torch.float16)
_CASTS = (Tensor.float, Tensor.bfloat16, Tensor.half)
_SELECTS = (functional.embedding, torch.index_select, Tensor.index_select, Tensor.__getitem__)
"""What returns a part of its argument: that part alone is raised."""

_GROUPED = ("grouped_mm", "_grouped_mm")
"""Products of groups of rows, each with a matrix of its own: mixtures of experts."""


class Raised(TorchFunctionMode):
    """Inside the block every operation takes and returns float64 where it would take or return a lower float.

    Casts to lower floats are casts to float64, too, and tensors say that this is their dtype. Weights stay what they are: those of
    linear layers are raised some rows at a time, what lookups read of a table alone, others as a whole for one operation.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _CASTS:
            return args[0].double()
        if func is functional.linear:
            return _linear(*args, **kwargs)
        if getattr(func, "__name__", "") in _GROUPED:
            return _grouped(*args, **kwargs)
        if func in _SELECTS or _writes_into_lower(func, args):
            return _raise(func(*args, **kwargs))
        return _raise(func(*_raise(tuple(args)), **_raise(kwargs)))


def _writes_into_lower(func: Callable[..., Any], args: Sequence[Any]) -> bool:
    name = getattr(func, "__name__", "")
    in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    return in_place and isinstance(args[0], Tensor) and args[0].dtype in _LOWER


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b``: x [..., in], W [out, in], b [out]."""
    rows, columns = weight.shape
    step, x = max(1, BLOCK_ELEMENTS // columns), _raise(x)
    raised = x.new_empty((min(step, rows), columns))
    parts = [functional.linear(x, raised[: len(part)].copy_(part)) for part in torch.split(weight, step)]
    y = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
    return y if bias is None else y + bias


def _grouped(x: Tensor, weight: Tensor, *, offs: Tensor, bias: Tensor | None = None, **_: Any) -> Tensor:
    """``x[offs[i - 1] : offs[i]] W[i]`` for every i, which PyTorch has no float64 of: x [rows, in], W [groups, in, out], offs [groups]."""
    x, bounds = _raise(x), [0, *offs.tolist()]
    y = x.new_zeros((len(x), weight.shape[-1]))
    for first, last, own in zip(bounds, bounds[1:], weight, strict=False):
        if first < last:
            y[first:last] = x[first:last] @ _raise(own)
    return y if bias is None else y + bias


def _raise(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.dtype in _LOWER else value
    if isinstance(value, torch.dtype):
        return torch.float64 if value in _LOWER else value
    if type(value) in (tuple, list):
        return type(value)(map(_raise, value))
    if type(value) is dict:
        return {key: _raise(part) for key, part in value.items()}
    return value
