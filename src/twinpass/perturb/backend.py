"""Which kernels change weights where they lie: Numba's in main memory, Triton's on CUDA devices, with the same bits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinpass.perturb import kernels
from twinpass.perturb.gemm import multiply
from twinpass.perturb.layout import flat_view


@dataclass(frozen=True)
class Backend:
    """A module of ``kernels``, and how it takes tensors.

    Both modules have ``fill``, ``perturb``, ``perturb_each``, ``gather``, ``accumulate``, ``accumulate_each`` and ``lattice_add``, with the
    same arguments, but that one takes arrays in main memory and the other tensors on the device.

    Args:
        view: a tensor's memory, flat, as kernels take it.
        index: row numbers [n], as ``gather`` takes them.
        devices: the types of device that are reached.
        dtypes: what trainable weights may be.
        fuses: whether :mod:`twinpass.perturb.gemm.multiply` reaches float32 weights, too, so that they need not be written.
        growth: how many times as many elements are worked on at a time as suit a processor's cache.
    """

    kernels: Any
    view: Callable[[Tensor], Any]
    index: Callable[[Tensor], Any]
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    growth: int = 1
    fuses: bool = False


def _rows(ids: Tensor) -> NDArray[np.int64]:
    return ids.numpy().astype(np.int64)


DTYPES = (torch.float32, torch.bfloat16, torch.float64)
NUMBA = Backend(kernels, flat_view, _rows, ("cpu",), DTYPES, fuses=multiply.AVAILABLE)


def triton() -> Backend:
    """The kernels for CUDA devices, which take a matrix at a time.

    Raises:
        ModelError: Triton is not installed.
    """
    from twinpass.perturb import triton_kernels

    return Backend(triton_kernels, _flat, _long, ("cuda",), triton_kernels.DTYPES, growth=128)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().view(-1)


def _long(ids: Tensor) -> Tensor:
    return ids.to(torch.int64)


def backend_for(tensor: Tensor) -> Backend:
    """The kernels for a tensor where it lies."""
    return triton() if tensor.device.type == "cuda" else NUMBA
