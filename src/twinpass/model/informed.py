"""Adapters whose directions are given and whose gains are trained; saved as the LoRA that they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from twinpass.errors import ModelError
from twinpass.model.adapter import Adapter, targeted
from twinpass.model.causal import CausalModel
from twinpass.model.space import Space


@dataclass(slots=True)
class InformedWeights:
    """One module's part: ``y += (x A^T) outputs``, where A = ``base`` + gain ``direction`` [r, in].

    ``gain`` names the trained number [1]. ``outputs`` [r, out] are all modules'; None as long as there is no direction.
    """

    gain: str
    base: Tensor | None = None
    direction: Tensor | None = None
    outputs: Tensor | None = None

    def inputs(self, gain: Tensor) -> Tensor:
        """A [r, in] with this gain."""
        assert self.base is not None
        assert self.direction is not None
        return self.base + gain * self.direction


class InformedAdapter(Adapter):
    """A low-rank adapter on what the upper layers add to the residual stream, moved along one direction a module.

    Directions come by :meth:`use`, each time new ones; what was gained along the old ones stays. Their number of rows r is the
    adapter's rank. The base model is not changed.

    Args:
        layers: so many of the uppermost decoder layers have one.
        targets: last parts of module names.
        invocation: for an activated adapter, the tokens from which on it acts.

    Raises:
        ModelError: a target matches no linear layer there, or one that does not write into the residual stream.
    """

    def __init__(
        self, model: PreTrainedModel, layers: int, targets: Sequence[str], invocation: tuple[int, ...] = ()
    ) -> None:
        causal = CausalModel(model)
        self.targets, self.invocation = tuple(targets), invocation
        first = max(0, causal.depth - layers)
        self.layers = range(first, causal.depth) if first else None
        self.fan_in_fan_out = False
        self.modules: dict[str, InformedWeights] = {}
        self._shapes: dict[str, tuple[int, int]] = {}
        size = int(model.config.get_text_config().hidden_size)
        chosen, self.left_out = targeted(causal, self.targets, activated=bool(invocation))
        for path, module in chosen.items():
            if causal.layer_of(path) < first:
                continue
            transposed = isinstance(module, Conv1D)
            self.fan_in_fan_out |= transposed
            if module.weight.shape[1 if transposed else 0] != size:
                raise ModelError(
                    f"trainable.targets: {path} has {module.weight.shape[1 if transposed else 0]} outputs, the residual stream {size}; "
                    "informed directions are for what writes into it, such as o_proj and down_proj"
                )
            self.modules[path] = InformedWeights(f"{path}.gain")
            self._shapes[path] = (module.weight.shape[0 if transposed else 1], size)
        if missing := sorted(set(self.targets) - {path.rsplit(".", 1)[-1] for path in self.modules}):
            linear = {p.rsplit(".", 1)[-1] for p, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
            raise ModelError(
                f"trainable.targets {missing} match no linear layer of {type(model).__name__}; the model has {sorted(linear)}"
            )
        weight = next(iter(model.parameters()))
        dtype = torch.float64 if weight.dtype is torch.float64 else torch.float32
        gains = torch.zeros(len(self.modules), dtype=dtype, device=weight.device)
        self.tensors = {own.gain: gains[i : i + 1] for i, own in enumerate(self.modules.values())}

    def use(self, space: Space) -> None:
        """Keep what has been gained, and go on along other directions.

        Raises:
            ModelError: they are another model's.
        """
        if space.inputs.keys() != self.modules.keys():
            raise ModelError(
                "these directions belong to other modules; they are another model's, or another number of layers'"
            )
        for path, own in self.modules.items():
            gain = self.tensors[own.gain]
            direction = space.inputs[path].to(gain)
            outputs = space.outputs.to(gain)
            if own.outputs is not None and not torch.equal(own.outputs, outputs):
                raise ModelError("directions of a run share their outputs; these have others")
            own.base = torch.zeros_like(direction) if own.base is None else own.inputs(gain)
            own.direction, own.outputs = direction, outputs
        for gain in self.tensors.values():
            gain.zero_()

    def reset(self) -> None:
        for own in self.modules.values():
            own.base = own.direction = own.outputs = None
        for gain in self.tensors.values():
            gain.zero_()

    @property
    def outputs(self) -> Tensor | None:
        """The directions [r, size] in which all modules move the residual stream; None before the first."""
        return next(iter(self.modules.values())).outputs

    @property
    def rank(self) -> int:
        return 1 if self.outputs is None else len(self.outputs)

    @property
    def alpha(self) -> float:
        return float(self.rank)

    def peft_tensors(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for path, own in self.modules.items():
            wide, high = self._shapes[path]
            if own.outputs is None:
                a, b = (trained[own.gain].new_zeros(shape) for shape in ((1, wide), (high, 1)))
            else:
                a, b = own.inputs(trained[own.gain]), own.outputs.t().clone(memory_format=torch.contiguous_format)
            found[f"{path}.lora_A.weight"], found[f"{path}.lora_B.weight"] = a, b
        return found
