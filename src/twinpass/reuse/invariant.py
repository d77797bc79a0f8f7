"""Below the first perturbed layer all lanes are the same, and stay so from step to step."""

from typing import Literal

from pydantic.dataclasses import dataclass

from twinpass.reuse.base import Circumstances, Policy, Sharing, Trains
from twinpass.settings import STRICT


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Invariant(Policy):
    """Exact: layers that no perturbation touches run once for all lanes, and are kept until an update touches them.

    Blocks of layers that take turns, as in LeZO and block-coordinate MeZO, each share what lies below them.

    Args:
        keep: of each token the ``states`` that enter the first trained layer, which is all that a step needs; or also the ``keys`` and
            values below it, many times as large, from which prompts that begin alike, and texts that are written, go on.
    """

    keep: Literal["states", "keys"] = "states"

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
        below = trains.first if self.keep == "states" else 0
        return Sharing("invariant", "all", trains.first, kept=True, below=below)
