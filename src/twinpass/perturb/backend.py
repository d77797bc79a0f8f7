"""Which kernels change weights where they lie: Numba's in main memory, Triton's on CUDA devices, with the same bits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from twinpass.perturb import kernels
from twinpass.perturb.layout import flat_view


@dataclass(frozen=True)
class Backend:
    """A module of ``kernels``, how it takes tensors, and the ``devices`` that it reaches.

    Both modules have ``accumulate`` and ``lattice_add``, which change memory in place, with the same arguments.
    """

    kernels: Any
    view: Callable[[Tensor], Any]
    devices: tuple[str, ...]


NUMBA = Backend(kernels, flat_view, ("cpu",))


def triton() -> Backend:
    """The kernels for CUDA devices.

    Raises:
        ModelError: Triton is not installed.
    """
    from twinpass.perturb import triton_kernels

    return Backend(triton_kernels, Tensor.detach, ("cuda",))


def backend_for(tensor: Tensor) -> Backend:
    """The kernels for a tensor where it lies."""
    return triton() if tensor.device.type == "cuda" else NUMBA
