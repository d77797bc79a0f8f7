"""What adapters have in common: trained tensors beside an unmodified model, and PEFT's folder format for them."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor


class Adapter(ABC):
    """A low-rank change of some linear layers; the base model is not changed.

    ``tensors`` are trained, by name, and lie back to back in memory. ``modules`` says by path what each linear layer's part is made
    of. An activated adapter acts from the tokens ``invocation`` on. ``layers`` are those that have one, if not all.
    """

    tensors: dict[str, Tensor]
    modules: Mapping[str, Any]
    targets: tuple[str, ...]
    invocation: tuple[int, ...]
    layers: range | None
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
            **({"alora_invocation_tokens": list(self.invocation)} if self.invocation else {}),
        }

    def save(self, folder: Path, base: str) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``, as PEFT reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        found = self.peft_tensors(self.tensors)
        tensors = {f"base_model.model.{name}": tensor.cpu().contiguous() for name, tensor in found.items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(self.peft_config(base), indent=2) + "\n")

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite the trained tensors in place, by name."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
