"""What the lanes of one model share under a policy, block by block."""

from collections.abc import Set
from dataclasses import dataclass

from twinpass.engine.embedded.scoring.jobs import SharedByLanes
from twinpass.engine.embedded.scoring.ledger import Ledger
from twinpass.errors import ModelError
from twinpass.reuse.base import Policy, Sharing, Trains
from twinpass.reuse.exact import Exact


@dataclass(frozen=True, slots=True)
class SharingByBlock:
    """A policy, asked about the weights that ``ledger`` counts.

    Args:
        depth: how many layers the model has.
        activated: whether what is trained is an activated adapter.
    """

    policy: Policy
    ledger: Ledger
    depth: int
    activated: bool

    def of(self, block: int | None) -> Sharing | None:
        """What lanes share that perturb ``block``.

        Raises:
            ModelError: the policy does not fit what is trained.
        """
        varies = len(self._blocks) > 1
        trains = Trains(self.depth, self.ledger.first[block], self.activated, varies)
        try:
            sharing = self.policy.sharing(trains)
        except ValueError as error:
            raise ModelError(f"[reuse] does not fit [trainable]: {error}") from error
        if sharing is None and self.activated:
            return Exact().sharing(trains)  # tokens before the activation point have no lanes
        if sharing is not None and sharing.tokens == "before_activation" and not self.activated:
            raise ModelError(f"[reuse] {type(self.policy).__name__} shares what only activated adapters leave alone")
        return sharing

    @property
    def all(self) -> list[Sharing]:
        """What is shared, whichever block is perturbed."""
        found = (self.of(block) for block in self.ledger.first)
        return [sharing for sharing in found if sharing is not None]

    @property
    def cuts(self) -> set[int]:
        """The layers below which all tokens are shared, whichever block is perturbed; 0: none."""
        return {_cut(self.of(block)) for block in self.ledger.first}

    def shared_by_lanes(self, blocks: Set[int | None]) -> SharedByLanes | None:
        """What lanes share that perturb these blocks, under the weights in force.

        Raises:
            ModelError: there is no such block.
        """
        first = self.ledger.first
        if unknown := sorted(str(block) for block in blocks if block not in first):
            raise ModelError(
                f"there is no block {', '.join(unknown)}; the trainable weights have {self._blocks or 'none'}"
            )
        sharing = self.of(min(blocks, key=lambda block: first[block]))
        return None if sharing is None else SharedByLanes(sharing, self.ledger.shared(sharing.layers))

    @property
    def _blocks(self) -> list[int]:
        return [block for block in self.ledger.first if block is not None]


def _cut(sharing: Sharing | None) -> int:
    if sharing is None:
        return 0
    return sharing.layers if sharing.tokens == "all" else sharing.below
