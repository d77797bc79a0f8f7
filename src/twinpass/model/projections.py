"""Output projections of upper layers, which are moved themselves: all of a model that forward passes alone tell a gradient of."""

from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from twinpass.errors import ModelError
from twinpass.model.defaults import WRITERS
from twinpass.model.trainable import Trainable, Trained
from twinpass.settings import STRICT, Count, Targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, config=STRICT)
class Projections(Trainable):
    """The weights of what writes into the residual stream in the uppermost ``layers``, in place: attention's output projection and the MLP's.

    Args:
        targets: last parts of their names; by default those that usual architectures have.
    """

    layers: Count = 8
    targets: Targets = WRITERS

    @property
    def upper(self) -> bool:
        return True

    def attach(self, model: "PreTrainedModel", seed: int, invocation: tuple[int, ...] = ()) -> Trained:
        from twinpass.model.causal import CausalModel
        from twinpass.model.targets import writing
        from twinpass.perturb.parameters import Parameters

        causal = CausalModel(model)
        first = max(0, causal.depth - self.layers)
        found = {f"{path}.weight": module.weight for path, module in writing(causal, self.targets, first)}
        if not found:
            raise ModelError(
                f"trainable.targets: {type(model).__name__} has no linear layer {', '.join(self.targets)} as wide as its residual stream; "
                'name its output projections, or take [trainable] kind = "full" with [estimator] kind = "spsa"'
            )
        return Trained(Parameters(found))
