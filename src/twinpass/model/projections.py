"""Output projections of upper layers, which are moved themselves: all of a model that forward passes alone tell a gradient of."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from twinpass.errors import ModelError
from twinpass.model.trainable import Trainable, Trained
from twinpass.settings import STRICT, Count, Targets

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D

    from twinpass.model.causal import CausalModel

WRITERS = ("o_proj", "down_proj", "out_proj", "c_proj", "fc2", "fc_out", "dense", "dense_4h_to_h", "wo", "w2")
"""What usual architectures call the layers that write into the residual stream."""


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
        from twinpass.perturb.parameters import Parameters

        causal = CausalModel(model)
        found = {f"{path}.weight": module.weight for path, module in self._found(causal)}
        if not found:
            raise ModelError(
                f"trainable.targets: {type(model).__name__} has no linear layer {', '.join(self.targets)} as wide as its residual stream; "
                'name its output projections, or take [trainable] kind = "full" with [estimator] kind = "spsa"'
            )
        return Trained(Parameters(found))

    def _found(self, causal: "CausalModel") -> "Iterator[tuple[str, nn.Linear | Conv1D]]":
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        from twinpass.model.causal import outputs

        first, inside = max(0, causal.depth - self.layers), f"{causal.layers_path}."
        size = int(causal.model.config.get_text_config().hidden_size)
        for path, module in causal.model.named_modules():
            named = path.startswith(inside) and path.rsplit(".", 1)[-1] in self.targets
            if not named or ".experts." in path:  # experts see some of the tokens only
                continue
            if isinstance(module, nn.Linear | Conv1D) and causal.layer_of(path) >= first and outputs(module) == size:
                yield path, module
