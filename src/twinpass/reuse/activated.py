"""Before the activation point the base model runs, whose keys and values hold for all lanes, steps, epochs and runs."""

from pydantic.dataclasses import dataclass

from twinpass.reuse.base import Circumstances, Policy, Sharing, Trains
from twinpass.settings import STRICT, NonEmpty


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ActivatedReuse(Policy):
    """Exact, for activated adapters (aLoRA, Greenewald et al. 2025, arXiv 2504.12397).

    Adapters that begin in an upper layer also leave the layers below it alone, for every token: those are kept as the states
    that enter it (not with ``spill``, which keeps whole prompts).

    Args:
        spill: a folder that keys and values are also written to, and found in by the next run.
    """

    spill: NonEmpty | None = None

    @property
    def disk(self) -> str | None:
        return self.spill

    def own_objections(self, to: Circumstances) -> list[str]:
        if to.activated:
            return []
        return [
            "'activated' needs [trainable] kind = \"activated\"; other weights act on every token, "
            "so use 'auto', 'exact' or 'invariant'"
        ]

    def sharing(self, trains: Trains) -> Sharing | None:
        if not trains.activated:
            raise ValueError("the weights act on every token; use trainable.kind = 'activated', or another policy")
        below = 0 if self.spill is not None else trains.first
        return Sharing("activated", "before_activation", trains.layers, kept=True, below=below)
