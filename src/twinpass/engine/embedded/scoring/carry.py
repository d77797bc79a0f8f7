"""Base-lane keys and values of a prefix that comes back every step, moved along with the weights.

The update ``theta += sum_k delta_k z_k`` goes along directions whose effect on them is known from the plus lanes just
scored, ``KV(theta + eps z_k) - KV0 = eps D_k + O(eps^2)``, so that ``KV0 += sum_k (delta_k / eps) (KV_k - KV0)``.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch

from twinpass.cache.pool import Pool
from twinpass.cache.prefix_cache import PrefixCache, Reservation
from twinpass.core import Term, Tokens, WeightsVersion
from twinpass.engine.embedded.scoring.packing import Rows


@dataclass(frozen=True, slots=True)
class Direction:
    """Where a perturbed lane's keys and values of the carried tokens are."""

    version: WeightsVersion
    slots: Rows


@dataclass
class Carry:
    """Owns the slots of what is carried, and of the directions it can move along until the next update.

    Args:
        tokens: the prefix.
        slots: one a token.
        version: the weights that the keys and values are for: they are computed, or brought, to them.
        cut: the layer whose entering states are carried as well.
    """

    cache: PrefixCache
    pool: Pool
    tokens: Tokens
    slots: Rows
    version: WeightsVersion
    cut: int
    age: int = 0
    directions: list[Direction] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stack = ExitStack()
        self._own: Reservation = self._stack.enter_context(self.cache.reservation())

    def adopt(self, slots: Rows, giver: Reservation) -> None:
        """Take slots over from another owner."""
        giver.hand_over(slots, self._own)

    def shorten(self, length: int) -> None:
        """Carry only the first tokens from now on."""
        self._own.drop(self.slots[length:])
        self.tokens, self.slots = self.tokens[:length], self.slots[:length]

    def drop_directions(self) -> None:
        """Forget where the last step's lanes were."""
        for direction in self.directions:
            self._own.drop(direction.slots)
            self.cache.invalidate(direction.version)
        self.directions = []

    def move(self, terms: Sequence[Term], version: WeightsVersion) -> bool:
        """Follow an update that brings the weights to ``version``; False if it leaves the known directions."""
        known = {direction.version.lane.probe: direction for direction in self.directions}
        if any(term.probe not in known for term in terms):
            return False
        parts, rest = [], 1.0
        for term in terms:
            direction = known[term.probe]
            self.cache.check(direction.version, direction.slots)
            share = term.scale / direction.version.lane.scale
            parts.append((share, torch.from_numpy(direction.slots)))
            rest -= share
        if parts:
            own = torch.from_numpy(self.slots)
            depth = version.layers
            self.pool.combine(own, [(rest, own), *parts], range(depth), hidden=0 < self.cut < depth)
        self.drop_directions()
        self.cache.rename(self.version, version)
        self.version = version
        self.age += 1
        return True

    def close(self, *, replaced: bool = False) -> None:
        """Give everything back; if it was ``replaced``, there are other keys and values of the same version."""
        self.drop_directions()
        self._stack.close()
        if not replaced:
            self.cache.invalidate(self.version)
