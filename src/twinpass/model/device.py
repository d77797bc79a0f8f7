"""Where a model lies, and how work is sent there."""

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from twinpass.errors import ModelError

GROWTH = 8
"""How many times as much is worked on at a time on a GPU: it has no cache to stay inside of, and each launch costs."""


@dataclass(frozen=True, slots=True)
class Device:
    """A torch device, and how much is worked on at a time there.

    Args:
        growth: how many times as many rows, logits and pairs of rows that look at each other are worked on at a time as on a CPU.
        fused: whether attention is a library's one operator, rather than products and a softmax of our own.
    """

    torch_device: torch.device
    growth: int
    fused: bool

    @classmethod
    def of(cls, model: nn.Module) -> "Device":
        """Where a model lies.

        Raises:
            ModelError: in several places, or on a device of another type than CPU and CUDA.
        """
        home: tuple[str, torch.device] | None = None
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.device.type not in ("cpu", "cuda"):
                raise ModelError(
                    f"{name} is on {tensor.device}; the torch engine runs on a CPU or one CUDA device: use model.cpu() or model.cuda()"
                )
            home = home or (name, tensor.device)
            if tensor.device != home[1]:
                raise ModelError(
                    f"{home[0]} is on {home[1]} and {name} on {tensor.device}; the torch engine runs on one device: load the model "
                    f"without device_map and use model.to({str(home[1])!r}), or [engine] kind = 'sglang' for one that is too large"
                )
        if home is None or home[1].type == "cpu":
            return CPU
        return cls(home[1], GROWTH, fused=True)

    def send(self, *arrays: NDArray[Any]) -> list[Tensor]:
        """Arrays of one dtype as tensors here: in one transfer, which nobody waits for. On a CPU they share memory."""
        parts = [torch.from_numpy(array) for array in arrays]
        if self.torch_device.type == "cpu":
            return parts
        sent = torch.cat([part.reshape(-1) for part in parts]).to(self.torch_device, non_blocking=True)
        sizes = [part.numel() for part in parts]
        return [flat.view(part.shape) for flat, part in zip(torch.split(sent, sizes), parts, strict=True)]


CPU = Device(torch.device("cpu"), 1, fused=False)
