"""Tensors as the kernels see them."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def flat_view(tensor: Tensor) -> NDArray[Any]:
    """The tensor's memory as a flat NumPy array (bfloat16 as its bits in uint16), row-major, without a copy."""
    data = tensor.detach()
    return (data.view(torch.uint16) if data.dtype is torch.bfloat16 else data).numpy().reshape(-1)
