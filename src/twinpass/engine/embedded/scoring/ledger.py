"""Which weights are in force: counts the updates that touched each layer, and names weights versions by them."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Self

from twinpass.core import Lane, WeightsVersion
from twinpass.model.causal import CausalModel
from twinpass.model.trainable import Trained


@dataclass
class Ledger:
    """The state of a model's weights, layer by layer.

    Args:
        base: hash of the checkpoint.
        adapted: whether adapters are trained; layers as such never change then.
        first: the first layer that each block's perturbation touches (None: all blocks).
        touched: by block, the layers that its update changes.
        updated: by layer, the number of the last update that changed it.
    """

    base: str
    adapted: bool
    first: Mapping[int | None, int]
    touched: Mapping[int | None, Set[int]]
    updated: list[int]
    updates: int = 0
    _shared: set[WeightsVersion] = field(default_factory=set)

    @classmethod
    def of(cls, base: str, causal: CausalModel, trained: Trained) -> Self:
        """A model at its base checkpoint."""
        parameters = trained.parameters
        layers = {name: causal.layer_of(name) for name in parameters}
        touched = {
            block: {layers[name] for name in parameters if parameters.moves(name, block)}
            for block in (None, *parameters.blocks)
        }
        first = {block: min(own) for block, own in touched.items()}
        return cls(base, bool(trained.adapters), first, touched, [0] * causal.depth)

    def lane(self, lane: Lane) -> WeightsVersion:
        """The weights of a lane, in all layers."""
        return WeightsVersion(self.base, len(self.updated), self.updates, lane, self.adapted)

    def shared(self, layers: int) -> WeightsVersion:
        """The weights that all lanes share below ``layers``, without adapters."""
        version = WeightsVersion(self.base, layers, self._last_change(layers))
        self._shared.add(version)
        return version

    def change(self, blocks: Iterable[int | None]) -> list[WeightsVersion]:
        """An update of some blocks; returns the shared versions that are no longer in force."""
        self.updates += 1
        for layer in set[int]().union(*(self.touched[block] for block in blocks)):
            self.updated[layer] = self.updates
        stale = [version for version in self._shared if version.updates < self._last_change(version.layers)]
        self._shared.difference_update(stale)
        return stale

    def changes_below(self, layers: int, blocks: Iterable[int | None]) -> bool:
        """Whether updates of these blocks change layers below ``layers``."""
        return not self.adapted and any(min(self.touched[block]) < layers for block in blocks)

    def _last_change(self, layers: int) -> int:
        return 0 if self.adapted else max(self.updated[:layers], default=0)
