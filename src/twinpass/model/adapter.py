"""What adapters have in common: trained tensors beside an unmodified model, and PEFT's folder format for them."""

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from twinpass.errors import ModelError
from twinpass.model.causal import CausalModel
from twinpass.model.save import new

_OF_EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
"""Names of experts' layers, and of the router, in checkpoints of transformers 4."""
_NUMBERS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Where configurations say how many experts there are: PEFT goes by the type of the model, also where none of its layers has any."""

_MAMBA = {"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"}
_OF_KERNELS = {"out_proj"}
"""What PEFT refuses in models of these types (0.18 and later, ``_check_lora_target_modules_mamba``)."""

_NEVER_ACTIVATED = {"mpt"}
"""Types of models that PEFT 0.21 calls without the places that adapters act from."""


class Adapter(ABC):
    """A low-rank change of some linear layers; the base model is not changed.

    ``tensors`` are trained, by name, and lie back to back in memory. ``modules`` says by path what each linear layer's part is made
    of. An activated adapter acts from the tokens ``invocation`` on. ``layers`` are those that have one, if not all; ``left_out``
    are modules of the same names elsewhere than in the language model.
    """

    tensors: dict[str, Tensor]
    modules: Mapping[str, Any]
    targets: tuple[str, ...]
    invocation: tuple[int, ...]
    layers: range | None
    left_out: tuple[str, ...]
    fan_in_fan_out: bool

    @property
    @abstractmethod
    def rank(self) -> int:
        """The rank of every part."""

    @property
    @abstractmethod
    def alpha(self) -> float:
        """Parts are scaled by ``alpha / rank``."""

    @abstractmethod
    def reset(self) -> None:
        """Put the adapter back to its start, which leaves the model as it is."""

    @abstractmethod
    def peft_tensors(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``PATH.lora_A.weight`` [r, in] and ``PATH.lora_B.weight`` [out, r], where the trained tensors have these values."""

    def peft_config(self, base: str) -> dict[str, Any]:
        """The content of PEFT's ``adapter_config.json``."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "target_modules": list(self.targets),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": self.fan_in_fan_out,
            "inference_mode": True,
            **({"layers_to_transform": list(self.layers)} if self.layers else {}),
            **({"exclude_modules": list(self.left_out)} if self.left_out else {}),
            **({"alora_invocation_tokens": list(self.invocation)} if self.invocation else {}),
        }

    def save(self, folder: Path, base: str) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``, as PEFT reads them.

        Raises:
            ModelError or OSError: they cannot be written.
        """
        found = self.peft_tensors(self.tensors)
        tensors = {f"base_model.model.{name}": tensor.cpu().contiguous() for name, tensor in found.items()}
        with new(folder) as part:
            save_file(tensors, part / "adapter_model.safetensors", metadata={"format": "pt"})
            (part / "adapter_config.json").write_text(json.dumps(self.peft_config(base), indent=2) + "\n", "utf-8")

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite the trained tensors in place, by name."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])


def targeted(
    causal: CausalModel, targets: Sequence[str], *, activated: bool = False
) -> tuple[dict[str, nn.Linear | Conv1D], tuple[str, ...]]:
    """The language model's linear layers by path whose last name is a target, and the paths of others of these names.

    It warns where this one is ``activated``, and PEFT would activate none in such a model, or could not on such a target.

    Raises:
        ModelError: PEFT would not find an adapter on them again.
    """
    _require_kept_by_peft(causal.model, targets)
    if activated:
        _warn_of_peft(causal, targets)
    chosen: dict[str, nn.Linear | Conv1D] = {}
    left_out = []
    for path, module in causal.model.named_modules():
        if path.rsplit(".", 1)[-1] not in targets or not isinstance(module, nn.Linear | Conv1D):
            continue
        if causal.reads_text(path):
            chosen[path] = module
        else:
            left_out.append(path)
    return chosen, tuple(left_out)


def reshaped_names(causal: CausalModel, targets: Iterable[str]) -> set[str]:
    """Those of the targets of which a module does not read [batch, tokens, size]: PEFT, which looks for the place to act from in each row of a batch, fails there."""
    return {path.rsplit(".", 1)[-1] for path in causal.reshaped} & set(targets)


def _warn_of_peft(causal: CausalModel, targets: Sequence[str]) -> None:
    """Warn of what PEFT makes of an activated adapter, where it is not what twinpass makes of it."""
    model = type(causal.model).__name__
    if causal.model.config.model_type in _NEVER_ACTIVATED:
        found = f"lets an activated adapter of {model} act on no token, without a word"
        remedy = "set trainable.kind = 'lora'"
    elif reshaped := sorted(reshaped_names(causal, targets)):
        found = f"fails on an activated adapter of {reshaped} of {model}, which read something else than [batch, tokens, size]"
        remedy = "leave them out of trainable.targets, or set trainable.kind = 'lora'"
    else:
        return
    warnings.warn(f"PEFT {found}; twinpass lets it act. For use elsewhere {remedy}", stacklevel=3)


def lost_by_peft(model: PreTrainedModel, targets: Iterable[str]) -> set[str]:
    """Those of the targets that PEFT does not put an adapter back on: what it takes for routed experts, and what Mamba's kernels read past the module."""
    return _taken_for_experts(model, targets) | _past_its_module(model, targets)


def _taken_for_experts(model: PreTrainedModel, targets: Iterable[str]) -> set[str]:
    lost = _OF_EXPERTS & set(targets)
    config = model.config.get_text_config()
    mixed = any(getattr(config, name, None) for name in _NUMBERS) or any(map(_has_experts, model.modules()))
    return lost if lost and mixed else set()


def _past_its_module(model: PreTrainedModel, targets: Iterable[str]) -> set[str]:
    return _OF_KERNELS & set(targets) if model.config.model_type in _MAMBA else set()


def _has_experts(module: nn.Module) -> bool:
    """Whether a module holds experts' weights [experts, out, in]; a convolution's have three dimensions, too."""
    own = module.parameters(recurse=False)
    return not isinstance(module, nn.Conv1d) and any(parameter.dim() == 3 for parameter in own)


def _require_kept_by_peft(model: PreTrainedModel, targets: Sequence[str]) -> None:
    """Refuse targets that PEFT takes for routed experts, which newer models hold in one tensor of three dimensions [experts, out, in].

    It looks by name, and maps an adapter of a dense layer or a shared expert of that name to experts, where it is not found.

    Raises:
        ModelError: naming the targets.
    """
    if lost := sorted(_past_its_module(model, targets)):
        raise ModelError(
            f"trainable.targets {lost}: PEFT refuses adapters there in models of the type {model.config.model_type}, whose kernels read the weight past "
            "its module, and what was trained could not be loaded; name others, such as in_proj, or train weights of the model itself with "
            '[trainable] kind = "layers" or "pattern"'
        )
    if lost := sorted(_taken_for_experts(model, targets)):
        raise ModelError(
            f"trainable.targets {lost}: in {type(model).__name__}, which has routed experts, PEFT takes these names for the experts, and the "
            "trained adapter would be lost when it is loaded; leave them out (attention's names are kept), or train weights of the model "
            'itself with [trainable] kind = "layers" or "pattern"'
        )
