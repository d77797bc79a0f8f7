"""The physical limit: nothing but the matrix products that a step cannot avoid."""

import time
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from twinpass.engine.embedded.products import in_blocks, is_linear, product


@dataclass(frozen=True)
class Shape:
    """``times`` products of [rows, columns] by [columns, out]."""

    rows: int
    columns: int
    out: int
    times: int = 1

    @property
    def flops(self) -> float:
        """Multiplications and additions."""
        return 2.0 * self.rows * self.columns * self.out * self.times


@contextmanager
def recorded(model: nn.Module, perturbed: Set[str], lanes: int) -> Iterator[list[Shape]]:
    """The products of the model's linear layers inside the block.

    Args:
        perturbed: names of weights that each of the ``lanes`` has its own copy of.
    """
    shapes: list[Shape] = []
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    handles = []
    for module in model.modules():
        if is_linear(module):
            weight: Any = module.weight
            times = lanes if names[id(weight)] in perturbed else 1
            handles.append(module.register_forward_pre_hook(_recorder(shapes, tuple(weight.shape), times)))
    try:
        yield shapes
    finally:
        for handle in handles:
            handle.remove()


def _recorder(shapes: list[Shape], weight: tuple[int, int], times: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        x: Tensor = args[0]
        shapes.append(Shape(x.numel() // x.shape[-1] // times, weight[1], weight[0], times))

    return hook


def paired(shapes: Iterable[Shape]) -> list[Shape]:
    """The same lanes as sums and differences: all rows by the weight, and half of them by its direction, where it has one."""
    found = []
    for shape in shapes:
        rows = shape.rows * shape.times
        found.append(replace(shape, rows=rows, times=1))
        if shape.times > 1:
            found.append(replace(shape, rows=rows // 2, times=1))
    return found


def seconds(shapes: list[Shape], dtype: torch.dtype, repeats: int = 3) -> float:
    """How long the products take one after another, each by the fastest way that PyTorch has, at its best."""
    total = 0.0
    for shape in set(shapes):
        x, weight = torch.randn(shape.rows, shape.columns).to(dtype), torch.randn(shape.out, shape.columns).to(dtype)
        out = torch.empty(shape.rows, shape.out, dtype=dtype)
        with torch.inference_mode():
            ways = partial(torch.mm, x, weight.t(), out=out), partial(product, x, in_blocks(weight))
            best = min(_best(way, repeats) for way in ways)
        total += best * shape.times * shapes.count(shape)
    return total


def _best(way: Callable[[], Any], repeats: int) -> float:
    way()
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        way()
        found.append(time.perf_counter() - started)
    return min(found)
