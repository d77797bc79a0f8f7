"""A stand-in for a CUDA device: tensors that say they lie on one, hold real values in main memory, and refuse to be mixed up.

Inside :func:`stand_in` every operation on such tensors runs on the values that they hold. One that a CUDA device would refuse, or
would have to wait for, is an error: host tensors beside device ones (but for single numbers and copies), ``.numpy()``. Reads by
the host (``.item()``, ``.cpu()``) are counted.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from twinpass.perturb import backend, kernels
from twinpass.perturb.layout import flat_view

CUDA = torch.device("cuda", 0)
aten: Any = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
READS = (aten._local_scalar_dense.default, aten.is_nonzero.default)


class DeviceTensor(Tensor):
    """A tensor on the stand-in, over values ``held`` in main memory."""

    held: Tensor

    @staticmethod
    def __new__(cls: Any, values: Tensor) -> "DeviceTensor":
        make: Any = Tensor._make_wrapper_subclass
        made: DeviceTensor = make(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=CUDA,
        )
        made.held = values
        return made

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.held!r})"

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def contiguous(self, memory_format: Any = torch.contiguous_format) -> Tensor:
        return self if self.is_contiguous() else DeviceTensor(self.held.contiguous())

    def copy_(self, source: Tensor, non_blocking: bool = False) -> "DeviceTensor":
        self.held.copy_(source.held if isinstance(source, DeviceTensor) else source)
        return self

    def item(self) -> Any:
        return aten._local_scalar_dense.default(self)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __getitem__(self, key: Any) -> Any:
        return DeviceTensor(self.held[_key(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.held[_key(key)] = _own(value)

    @classmethod
    def __torch_dispatch__(cls, func: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        raise AssertionError(f"{func} on a device tensor outside of stand_in()")


def _own(value: Any) -> Any:
    assert isinstance(value, DeviceTensor) or not isinstance(value, Tensor), "a host tensor meets one on the device"
    return value.held if isinstance(value, DeviceTensor) else value


def _key(key: Any) -> Any:
    """An index, in which whole arrays must lie on the device: others would be sent there, and waited for, each time."""
    parts = key if isinstance(key, tuple) else (key,)
    assert all(part is None or part is ... or isinstance(part, int | slice | DeviceTensor) for part in parts), key
    return tuple(_own(part) for part in parts)


@dataclass
class Seen:
    """What the stand-in did: reads by the host, by operation."""

    reads: Counter[str] = field(default_factory=Counter)


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, seen: Seen) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        flat = list(_tensors((args, kwargs)))
        there = [tensor for tensor in flat if isinstance(tensor, DeviceTensor)]
        device = kwargs.get("device", CUDA if there else None)
        on_device = device is not None and torch.device(device).type == "cuda"
        if not there and not on_device:
            return func(*args, **kwargs)
        if func not in COPIES:
            mixed = [tensor for tensor in flat if not isinstance(tensor, DeviceTensor) and tensor.dim()]
            if mixed and there:
                raise AssertionError(
                    f"{func} mixes device tensors with one in main memory of shape {tuple(mixed[0].shape)}"
                )
        if func in READS or (there and not on_device):
            self.seen.reads[str(func)] += 1
        if "device" in kwargs and on_device:
            kwargs["device"] = torch.device("cpu")
        plain = tree_map_only(DeviceTensor, lambda tensor: tensor.held, (args, kwargs))
        result = func(*plain[0], **plain[1])
        if func is aten._to_copy.default and result is args[0]:
            result = result.clone()
        known = {id(tensor.held): tensor for tensor in there}
        place = func is aten.copy_.default and not isinstance(args[0], DeviceTensor)
        if not on_device or place:
            return args[0] if place else result
        return tree_map_only(
            Tensor, lambda tensor: known[id(tensor)] if id(tensor) in known else DeviceTensor(tensor), result
        )


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))


class _Kernels:
    """Numba's kernels for the stand-in, under the rules of Triton's: every tensor lies there, in one piece."""

    def __getattr__(self, name: str) -> Any:
        function = getattr(kernels, name)

        def call(*args: Any) -> Any:
            assert all(isinstance(x, DeviceTensor) for x in args if isinstance(x, Tensor)), f"{name} got a host tensor"
            return function(*(_array(x) if isinstance(x, Tensor) else x for x in args))

        return call


def _array(tensor: Any) -> Any:
    values = tensor.held
    assert values.is_contiguous()
    return flat_view(values).reshape(values.shape)


STAND_IN = replace(
    backend.NUMBA,
    kernels=_Kernels(),
    view=backend._flat,
    index=backend._long,
    devices=("cuda",),
    dtypes=(torch.float32, torch.bfloat16),
    growth=128,
    fuses=False,
)
"""What :func:`backend.triton` returns, but for the kernels, which need no Triton."""


_make = torch.tensor


def _tensor(data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
    """``torch.tensor``, which makes tensors where no operation is to be seen."""
    made = _make(data, **kwargs)
    return made if device is None else made.to(device)


@contextmanager
def stand_in() -> Iterator[Seen]:
    """Inside the block there is a CUDA device, but for what runs on one."""
    seen = Seen()
    with pytest.MonkeyPatch.context() as patch, torch.no_grad(), _Mode(seen):
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(backend, "triton", lambda: STAND_IN)
        patch.setattr(torch, "tensor", _tensor)
        yield seen


def to_device(model: nn.Module) -> Any:
    """The model with its parameters and buffers on the stand-in; ties stay."""
    moved: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                new = moved.get(id(parameter))
                module._parameters[name] = new = (
                    nn.Parameter(DeviceTensor(parameter.detach()), False) if new is None else new
                )
                moved[id(parameter)] = moved[id(new)] = new
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = DeviceTensor(buffer)
    return model
