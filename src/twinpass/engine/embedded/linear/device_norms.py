"""Root mean square norms of all lanes by PyTorch's own kernel, for devices other than a CPU."""

from collections.abc import Mapping

import torch
from torch import Tensor

TOLERANCES: Mapping[torch.dtype, float] = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7}
"""How far a result may be from the module's own, relative to its largest: one step of the dtype."""


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
    """``x / sqrt(mean(x^2) + epsilon) * (offset + weight)``: x [lanes, ..., width] or lane after lane, weight [lanes, width]."""
    normal = torch.nn.functional.rms_norm(x, x.shape[-1:], None, epsilon)
    scale = weight + offset if offset else weight
    return (normal.reshape(len(weight), -1, x.shape[-1]) * scale[:, None]).view(x.shape)


def offsets(dtype: torch.dtype) -> tuple[float, ...]:
    """What may be added to a weight in its own dtype: in bfloat16 nothing, as 1 + w would round a perturbation of w away."""
    return (0.0, 1.0) if dtype is torch.float32 else (0.0,)
