"""Root mean square norms (Zhang and Sennrich 2019, arXiv 1910.07467) of all lanes in one pass over memory (Numba, CPU).

A Hugging Face model computes one in six passes. Which of its modules are such norms is found by what they return, not by name.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor, nn

from twinpass.engine.embedded.linear import device_norms
from twinpass.model.patching import forwards_of
from twinpass.perturb.compiled import kernel
from twinpass.perturb.layout import flat_view
from twinpass.perturb.noise import F32
from twinpass.perturb.threads import threads_for

_f = np.float32
TOLERANCE = 1e-5


@kernel(parallel=True, fastmath={"reassoc", "contract"})
def _rms_norm(x: F32, weight: F32, out: F32, epsilon: np.float32, offset: np.float32) -> None:
    rows, width = x.shape[1], x.shape[2]
    for r in prange(x.shape[0] * rows):
        lane = r // rows
        source, target, scale = x[lane, r % rows], out[lane, r % rows], weight[lane]
        total = _f(0)
        for i in range(width):
            total += source[i] * source[i]
        factor = _f(1) / np.sqrt(total / _f(width) + epsilon)
        for i in range(width):
            target[i] = source[i] * factor * (offset + scale[i])


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
    """``x / sqrt(mean(x^2) + epsilon) * (offset + weight)``: x [lanes, ..., width], weight [lanes, width], on a CPU in float32."""
    if x.device.type != "cpu":
        return device_norms.rms_norm(x, weight, epsilon, offset)
    x, out = x.contiguous(), torch.empty(x.shape)
    if x.numel():
        shape = (len(weight), -1, x.shape[-1])
        source, target = (flat_view(tensor).reshape(shape) for tensor in (x, out))
        scales = flat_view(weight.contiguous()).reshape(weight.shape)
        with threads_for(x.numel()):
            _rms_norm(source, scales, target, _f(epsilon), _f(offset))
    return out


def epsilon_of(module: nn.Module) -> float | None:
    """The number that a norm adds under its root, where it says so."""
    found = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return found if isinstance(found, float) else None


def offset_of(module: nn.Module) -> float | None:
    """What is added to the weight (0, or 1) of a module that returns what :func:`rms_norm` does; None: it does not."""
    parameters = dict(module.named_parameters(recurse=False))
    weight, epsilon = parameters.get("weight"), epsilon_of(module)
    if set(parameters) != {"weight"} or weight is None or epsilon is None or any(True for _ in module.children()):
        return None
    here = weight.device.type == "cpu"
    if weight.dim() != 1 or weight.dtype not in ((torch.float32,) if here else device_norms.TOLERANCES):
        return None
    rows = torch.linspace(-1.5, 1.0, 2 * weight.numel()).view(1, 2, -1).to(weight)
    tolerance = TOLERANCE if here else device_norms.TOLERANCES[weight.dtype]
    try:
        with torch.no_grad():
            own = module(rows)
    except (RuntimeError, TypeError, ValueError):
        return None
    if not isinstance(own, Tensor) or own.dtype is not rows.dtype or own.shape != rows.shape:
        return None
    near = tolerance * float(own.abs().max())
    found = (
        offset
        for offset in device_norms.offsets(weight.dtype)
        if torch.allclose(own, rms_norm(rows, weight.detach()[None], epsilon, offset), tolerance, near)
    )
    return next(found, None)


@dataclass(frozen=True, slots=True)
class Norm:
    """A module that returns what :func:`rms_norm` does, in float32 on a CPU."""

    module: nn.Module
    epsilon: float
    offset: float

    def forward(self, x: Tensor) -> Any:
        """What the module returns, without a graph."""
        if torch.is_grad_enabled() or x.dtype is not torch.float32:
            return type(self.module).forward(self.module, x)
        return rms_norm(x, self.module.get_parameter("weight").detach()[None], self.epsilon, self.offset)


def norms_of(model: nn.Module) -> tuple[Norm, ...]:
    """The norms in a model whose own forward takes several passes over memory, on a CPU."""
    found = []
    for module in model.modules():
        epsilon, offset = epsilon_of(module), offset_of(module)
        if epsilon is not None and offset is not None and module.get_parameter("weight").device.type == "cpu":
            found.append(Norm(module, epsilon, offset))
    return tuple(found)


@contextmanager
def own_norms(norms: Iterable[Norm]) -> Iterator[None]:
    """Inside the block these modules take one pass over memory."""
    with forwards_of({norm.module: norm.forward for norm in norms if "forward" not in norm.module.__dict__}):
        yield
