"""The physical limit: nothing but the matrix products that a step cannot avoid."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from twinpass.engine.embedded.linear.products import prepacked, product
from twinpass.model.causal import is_linear


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


class Loop:
    """The products of a step, bare, one after another: each by the fastest way that PyTorch has, found here, on weights that no cache holds.

    Args:
        shapes: in the order of the step.
        dtype: of rows and weights.
    """

    def __init__(self, shapes: Sequence[Shape], dtype: torch.dtype) -> None:
        ways = {shape: _fastest(shape, dtype) for shape in set(shapes)}
        layers = {shape: _Layers(shape, dtype, shapes.count(shape)) for shape in ways}
        self._calls = [(shape.times, layers[shape].another(ways[shape])) for shape in shapes]

    def seconds(self) -> float:
        """How long they take now."""
        started = time.perf_counter()
        with torch.inference_mode():
            for times, call in self._calls:
                for _ in range(times):
                    call()
        return time.perf_counter() - started


Way = Callable[[Tensor, Tensor, Tensor], Any]
"""Multiplies rows by a weight [out, in] as :func:`_prepare` left it; a third tensor may take the product."""


def _rows(x: Tensor, weight: Tensor, out: Tensor) -> Any:
    return torch.mm(x, weight.t(), out=out)


def _prepacked(x: Tensor, weight: Tensor, out: Tensor) -> Any:
    return product(x, weight)


def _prepare(way: Way, weight: Tensor) -> Tensor:
    return prepacked(weight) if way is _prepacked else weight


class _Layers:
    """Layers of one shape, with weights of their own as far as ``UNCACHED`` elements go; rows and product lie where they lay."""

    def __init__(self, shape: Shape, dtype: torch.dtype, count: int) -> None:
        self._shape, self._dtype = shape, dtype
        self._x, self._out = _random(shape.rows, shape.columns, dtype), _random(shape.rows, shape.out, dtype)
        self._distinct = min(count, -(-UNCACHED // (shape.columns * shape.out)))
        self._weights: list[Tensor] = []
        self._asked = 0

    def another(self, way: Way) -> Callable[[], Any]:
        """The next layer's product."""
        if len(self._weights) < self._distinct:
            self._weights.append(_prepare(way, _random(self._shape.out, self._shape.columns, self._dtype)))
        weight = self._weights[self._asked % self._distinct]
        self._asked += 1
        return partial(way, self._x, weight, self._out)


UNCACHED = 1 << 25
"""So many weights of one shape push each other out of any cache."""


def _fastest(shape: Shape, dtype: torch.dtype, repeats: int = 3) -> Way:
    def best(way: Way) -> float:
        call = _Layers(shape, dtype, 1).another(way)
        with torch.inference_mode():
            call()
            return min(_timed(call) for _ in range(repeats))

    return min((_rows, _prepacked), key=best)


def _timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _random(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(rows, columns).to(dtype)
