"""How linear layers multiply in a pass of several lanes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from twinpass.core import Lane
from twinpass.engine.embedded.linear.lanes import LaneWeights, runs
from twinpass.engine.embedded.linear.products import product
from twinpass.perturb.gemm import multiply


class Arithmetic(ABC):
    """Products of rows [lanes, rows, in]: [lanes, rows, out].

    ``everywhere``: whether layers are to come here whose weights no lane perturbs, too.
    """

    everywhere: ClassVar[bool]

    @abstractmethod
    def moved(self, weights: LaneWeights, name: str, rows: Tensor) -> Tensor:
        """Each lane's rows under its own weight, that of the trained parameter ``name`` [out, in]."""

    @abstractmethod
    def fixed(self, lanes: Sequence[Lane], layer: nn.Module, rows: Tensor, bias: Tensor | None) -> Tensor:
        """All lanes' rows under the weight of ``layer``, a linear one that is not trained, and a bias [out]."""


class Plain(Arithmetic):
    """Products in the dtype of the weights.

    In float32 W + eps z is formed where it is multiplied; otherwise one tile at a time of all lanes, while it is in the cache.
    """

    everywhere: ClassVar[bool] = False

    def moved(self, weights: LaneWeights, name: str, rows: Tensor) -> Tensor:
        if weights.parameters.backend.fuses and rows.dtype is weights.parameters[name].dtype is torch.float32:
            return _fused(weights, name, rows.contiguous())
        tiles = (torch.bmm(rows, tile.transpose(1, 2)) for _, _, tile in weights.tiles(name))
        whole, *others = tiles
        return torch.cat([whole, *others], dim=2) if others else whole

    def fixed(self, lanes: Sequence[Lane], layer: nn.Module, rows: Tensor, bias: Tensor | None) -> Tensor:
        return product(rows, layer.get_parameter("weight"), bias)


def _fused(weights: LaneWeights, name: str, rows: Tensor) -> Tensor:
    weights.visited.add(name)
    master, flat = weights.parameters[name], weights.parameters.flat[name]
    key, _ = weights.parameters.keys_of[name]
    y = rows.new_empty((*rows.shape[:2], master.shape[0]))
    for probe, first, last in runs([weights.probe(name, lane) for lane in weights.lanes]):
        if probe is None:
            y[first:last] = product(rows[first:last], master.detach())
        else:
            scales = np.array([lane.scale for lane in weights.lanes[first:last]])
            x, out = rows[first:last].numpy(), y[first:last].numpy()
            multiply.multiply(x, flat, scales, out, probe.seed, key, weights.distribution)
    return y
