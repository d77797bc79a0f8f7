"""How linear layers multiply in a pass of several lanes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from twinpass.core import Lane
from twinpass.engine.embedded.lanes import LaneWeights
from twinpass.engine.embedded.products import product


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
    """Products in the dtype of the weights, one tile of W + eps z and W - eps z at a time while it is in the cache."""

    everywhere: ClassVar[bool] = False

    def moved(self, weights: LaneWeights, name: str, rows: Tensor) -> Tensor:
        tiles = (torch.bmm(rows, tile.transpose(1, 2)) for _, _, tile in weights.tiles(name))
        whole, *others = tiles
        return torch.cat([whole, *others], dim=2) if others else whole

    def fixed(self, lanes: Sequence[Lane], layer: nn.Module, rows: Tensor, bias: Tensor | None) -> Tensor:
        return product(rows, layer.get_parameter("weight"), bias)
