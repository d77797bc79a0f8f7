"""AdamW's moments beside what is trained, and both in one file."""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from twinpass.engine.base import AdamStep
from twinpass.errors import JournalError
from twinpass.perturb.layout import flat_view

NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""What files of safetensors call a dtype."""

KINDS = ("weights",), ("first", "second")
"""What a snapshot has of each parameter, and what more it has where there are moments."""


@dataclass
class Moments:
    """Exponential means of gradients (``first``) and of their squares (``second``), by name; none before the first step."""

    first: dict[str, Tensor] = field(default_factory=dict)
    second: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def move(
        self, parameters: Mapping[str, Tensor], gradient: Mapping[str, Tensor], norm: float, step: AdamStep
    ) -> None:
        """One step of every parameter, in place, along a gradient of this norm."""
        shrink = min(1.0, step.clip / norm) if step.clip and norm else 1.0
        rate = step.lr / (1 - step.beta1**step.number)
        root = (1 - step.beta2**step.number) ** 0.5
        for name, parameter in parameters.items():
            own = gradient[name] * shrink
            first = self.first.setdefault(name, torch.zeros_like(parameter))
            second = self.second.setdefault(name, torch.zeros_like(parameter))
            first.lerp_(own, 1 - step.beta1)
            second.mul_(step.beta2).addcmul_(own, own, value=1 - step.beta2)
            if step.decay:
                parameter.mul_(1 - step.lr * step.decay)
            parameter.addcdiv_(first, second.sqrt().div_(root).add_(step.eps), value=-rate)

    def store(self, parameters: Mapping[str, Tensor], file: Path) -> str:
        """Write parameters and moments; returns a hash of their names and bits."""
        tensors = self._tensors(parameters)
        _write(tensors, file)
        return _hash(tensors)

    def restore(self, parameters: Mapping[str, Tensor], file: Path) -> str:
        """Bring back what :meth:`store` wrote; returns its hash.

        Raises:
            JournalError: the file is not one of these parameters.
        """
        found = load_file(file)
        weights, both = ({f"{kind}.{name}" for kind in kinds for name in parameters} for kinds in KINDS)
        if found.keys() not in (weights, weights | both) or any(
            found[f"weights.{name}"].shape != own.shape for name, own in parameters.items()
        ):
            raise JournalError(f"{file} is not a snapshot of what this run trains; restore it from a backup")
        self.first, self.second = {}, {}
        for name, parameter in parameters.items():
            parameter.copy_(found[f"weights.{name}"])
            if len(found) > len(weights):
                self.first[name] = found[f"first.{name}"].to(parameter.device)
                self.second[name] = found[f"second.{name}"].to(parameter.device)
        return _hash(self._tensors(parameters))

    def _tensors(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        kinds = {"weights": parameters, "first": self.first, "second": self.second}
        return {f"{kind}.{name}": tensor for kind, tensors in kinds.items() for name, tensor in tensors.items()}


def _write(tensors: Mapping[str, Tensor], file: Path) -> None:
    """A file of safetensors, of which ``save_file`` would hold all bytes in memory once more."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            out.write(flat_view(tensor.detach().cpu().contiguous()).data)


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(flat_view(tensors[name].detach().cpu().contiguous()).data)
    return digest.hexdigest()
