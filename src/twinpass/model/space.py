"""The space that informed probes move in: one direction a module, made of what forward passes say about the task."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from twinpass.core import Work
from twinpass.errors import JournalError

OUTPUTS = "outputs"


@dataclass(frozen=True)
class Observed:
    """What forward passes saw at the N tokens that answers are read from.

    ``inputs[path]`` [N, in] is what entered a module, ``errors`` [N, size] the derivative of the summed loss by the state
    that leaves the last layer: exact, as only the final norm and the head lie between. ``scale`` is the states' mean norm.
    ``normed[path]`` [N, size] is what stands for ``errors`` where a norm lies between a module and the stream: its Jacobian is in it.
    ``added[path]`` is the share of what a module writes that is in these states, where it is not 1.
    """

    inputs: Mapping[str, Tensor]
    errors: Tensor
    scale: float
    work: Work
    normed: Mapping[str, Tensor] = field(default_factory=dict)
    added: Mapping[str, float] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        """Whether states and errors are numbers; weights or a loss beyond them leave none to fit to."""
        return math.isfinite(self.scale) and bool(self.errors.isfinite().all())


@dataclass(frozen=True)
class Space:
    """Directions of the weights: module ``path`` moves by ``outputs^T inputs[path]``, ``outputs`` [r, size] and ``inputs[path]`` [r, in]."""

    outputs: Tensor
    inputs: Mapping[str, Tensor]

    @property
    def digest(self) -> str:
        """SHA-256 over names, shapes and bits."""
        found = hashlib.sha256()
        for name, tensor in sorted(self._tensors.items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            found.update(tensor.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    @property
    def _tensors(self) -> dict[str, Tensor]:
        return {OUTPUTS: self.outputs, **self.inputs}

    def save(self, path: Path) -> None:
        """Write to a file."""
        save_file({name: tensor.cpu().contiguous() for name, tensor in self._tensors.items()}, path)

    @classmethod
    def load(cls, path: Path, digest: str) -> Self:
        """Read a space back.

        Raises:
            JournalError: the file is missing, or is not the one that the journal names.
        """
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise JournalError(
                f"{path}: the directions that the journal names cannot be read ({error}); restore the run folder as it was"
            ) from error
        space = cls(tensors.pop(OUTPUTS, torch.empty(0)), tensors)
        if space.digest != digest:
            raise JournalError(
                f"{path}: these are other directions than the journal names; restore the run folder as it was"
            )
        return space
