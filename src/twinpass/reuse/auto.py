"""The default: whichever exact policy shares most."""

from pydantic.dataclasses import dataclass

from twinpass.reuse.activated import ActivatedReuse
from twinpass.reuse.base import Policy, Sharing, Trains
from twinpass.reuse.exact import Exact
from twinpass.reuse.invariant import Invariant
from twinpass.settings import STRICT


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Auto(Policy):
    """Exact: ``activated`` for activated adapters, ``invariant`` if layers below the trained ones stay, else ``exact``."""

    def sharing(self, trains: Trains) -> Sharing | None:
        chosen = ActivatedReuse if trains.activated else Invariant if trains.first else Exact
        return chosen().sharing(trains)
