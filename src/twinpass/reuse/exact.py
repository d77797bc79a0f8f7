"""Within a lane, every prefix that sequences share is computed once; nothing is kept from step to step."""

from pydantic.dataclasses import dataclass

from twinpass.reuse.base import Policy, Sharing, Trains
from twinpass.settings import STRICT


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Exact(Policy):
    """Exact: scores are those of encoding every sequence on its own.

    Before an activation point all lanes are the same, so that there those of one pass share one computation.
    """

    def sharing(self, trains: Trains) -> Sharing | None:
        return Sharing("activated", "before_activation", trains.layers, kept=False) if trains.activated else None
