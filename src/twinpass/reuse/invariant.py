"""Below the first perturbed layer all lanes are the same, and stay so from step to step."""

from pydantic.dataclasses import dataclass

from twinpass.reuse.base import Circumstances, Policy, Sharing, Trains
from twinpass.settings import STRICT


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Invariant(Policy):
    """Exact: layers that no perturbation touches run once for all lanes, and are kept until an update touches them.

    Blocks of layers that take turns, as in LeZO and block-coordinate MeZO, each share what lies below them.
    """

    def own_objections(self, to: Circumstances) -> list[str]:
        if to.activated:
            return ["activated adapters share more than layers; use 'activated', or 'auto'"]
        if to.upper is False:
            return [
                "'invariant' shares the layers below the first trained one, and there are none; "
                "train upper layers ([trainable] kind = \"layers\", or first above 0), or use 'auto'"
            ]
        return []

    def sharing(self, trains: Trains) -> Sharing | None:
        if trains.activated:
            raise ValueError("activated adapters share more than layers; use policy = 'activated'")
        if trains.first == 0 and trains.varies:
            return None
        if trains.first == 0:
            raise ValueError(
                "nothing lies below the first trained layer; train upper layers only (trainable.first above 0), "
                "smaller blocks of layers, or use policy = 'exact'"
            )
        return Sharing("invariant", "all", trains.first, kept=True)
