"""Watch how the model uses its parameters: as PyTorch's functions are called with them."""

from collections.abc import Callable, Iterable, Iterator, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from twinpass.errors import UnsupportedModuleError
from twinpass.perturb.parameters import Parameters

ELSE = "use engine.perturbation = 'inplace', which takes float32 weights (model.dtype), or leave it out of [trainable]"

_LOOKS = frozenset(
    [
        "shape",
        "dtype",
        "device",
        "layout",
        "ndim",
        "requires_grad",
        "is_leaf",
        "grad",
        "is_cuda",
        "is_sparse",
        "is_quantized",
        "is_meta",
        "itemsize",
        "nbytes",
        "size",
        "dim",
        "numel",
        "nelement",
        "stride",
        "element_size",
        "is_contiguous",
        "is_floating_point",
        "is_complex",
        "__len__",
        "get_device",
    ]
)
"""Properties and methods that look at a tensor, not at its values."""


class LookUp(TorchFunctionMode):
    """Answer look-ups in one table by ``rows(ids)``."""

    def __init__(self, table: Tensor, rows: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._table, self._rows = table, rows

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.embedding and args[1] is self._table:
            return self._rows(args[0])
        return func(*args, **(kwargs or {}))


class RawUse(TorchFunctionMode):
    """Refuse any use of a perturbed parameter that no lane module saw: its perturbation would be silently lost."""

    def __init__(self, parameters: Parameters, names: Set[str]) -> None:
        super().__init__()
        self._parameters, self._names = parameters, names

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _name(func) not in _LOOKS:
            for name in self._used((*args, *(kwargs or {}).values())):
                raise UnsupportedModuleError(f"{name} is used by {_name(func)} outside the module that owns it; {ELSE}")
        return func(*args, **(kwargs or {}))

    def _used(self, values: Iterable[Any]) -> Iterator[str]:
        for value in values:
            if isinstance(value, list | tuple):
                yield from self._used(value)
            elif isinstance(value, nn.Parameter) and (name := self._parameters.name_of(value)) in self._names:
                yield str(name)


def _name(func: Any) -> str:
    """A function's name, or the attribute's for a property."""
    name: str = getattr(func, "__name__", str(func))
    return getattr(func.__self__, "__name__", name) if name == "__get__" else name
