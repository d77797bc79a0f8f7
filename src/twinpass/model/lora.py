"""LoRA adapters held beside an unmodified model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from twinpass.errors import ModelError
from twinpass.model.adapter import Adapter, targeted
from twinpass.model.causal import CausalModel
from twinpass.perturb.kernels import fill
from twinpass.perturb.noise import derive_seed, name_key


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """One module's adapter ``y += scale * (x A^T) B^T``: the names of A [rank, in] and B [out, rank]."""

    a: str
    b: str
    scale: float


class LoraAdapter(Adapter):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on the linear layers whose name ends in a target.

    A ~ N(0, 1 / in) drawn from ``seed``, B = 0, so that training starts at the base model. Tensors are float32
    whatever the model's dtype (float64 in a float64 model), where the model lies.

    Args:
        model: the base model; it is not changed.
        targets: last parts of module names, such as ``q_proj``, in the language model; what else a larger model has stays as it is.
        invocation: for an activated adapter, the tokens from which on it acts.
        first: the first decoder layer that gets adapters.

    Raises:
        ModelError: a target matches no linear layer, or PEFT would not find the adapter again.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rank: int,
        alpha: float,
        targets: Sequence[str],
        seed: int,
        invocation: tuple[int, ...] = (),
        first: int = 0,
    ) -> None:
        self._rank, self._alpha, self.seed = rank, alpha, seed
        self.targets, self.invocation = tuple(targets), invocation
        self.tensors: dict[str, Tensor] = {}
        self.modules: dict[str, LoraWeights] = {}
        self.fan_in_fan_out = False
        causal = CausalModel(model)
        if first >= causal.depth:
            raise ModelError(f"trainable.first is {first}; {type(model).__name__} has layers 0 to {causal.depth - 1}")
        self.layers = range(first, causal.depth) if first else None
        chosen, self.left_out = targeted(causal, self.targets, activated=bool(invocation))
        for path, module in chosen.items():
            if not first or causal.layer_of(path) >= first:
                self._attach(path, module)
        self._require_matches(model)
        self.tensors = _back_to_back(self.tensors)
        self.reset()

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def alpha(self) -> float:
        return self._alpha

    def _attach(self, path: str, module: nn.Linear | Conv1D) -> None:
        weight = module.weight
        self.fan_in_fan_out |= isinstance(module, Conv1D)
        rows, columns = weight.shape
        features_in, features_out = (rows, columns) if isinstance(module, Conv1D) else (columns, rows)
        dtype = torch.float64 if weight.dtype is torch.float64 else torch.float32
        lora = LoraWeights(f"{path}.lora_A.weight", f"{path}.lora_B.weight", self.alpha / self.rank)
        self.modules[path] = lora
        self.tensors[lora.a] = torch.zeros(self.rank, features_in, dtype=dtype, device=weight.device)
        self.tensors[lora.b] = torch.zeros(features_out, self.rank, dtype=dtype, device=weight.device)

    def _require_matches(self, model: PreTrainedModel) -> None:
        found = {path.rsplit(".", 1)[-1] for path in self.modules}
        missing = sorted(set(self.targets) - found)
        if missing:
            linear = {p.rsplit(".", 1)[-1] for p, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
            where = f" in layers {self.layers.start} and above" if self.layers else ""
            raise ModelError(
                f"trainable.targets {missing} match no linear layer of {type(model).__name__}{where}; "
                f"the model has {sorted(linear)}; name some of those, or 'all-linear'"
            )

    def reset(self) -> None:
        for lora in self.modules.values():
            a = self.tensors[lora.a]
            normal = torch.empty(a.numel(), dtype=torch.float32)
            fill(normal.numpy(), derive_seed(self.seed, "lora_A"), name_key(lora.a), 0, "gaussian")
            a.copy_(normal.view(a.shape).to(a.dtype).mul_(a.shape[1] ** -0.5))
            self.tensors[lora.b].zero_()

    def peft_tensors(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(trained)


def _back_to_back(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors as parts of one, so that noise is drawn for all of them at once."""
    whole = torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
    bounds = accumulate((tensor.numel() for tensor in tensors.values()), initial=0)
    places = zip(tensors.items(), pairwise(bounds), strict=True)
    return {name: whole[first:last].view(tensor.shape) for (name, tensor), (first, last) in places}
