"""Tensors that are compared by name, bit for bit."""

from collections.abc import Mapping

import torch
from torch import Tensor

from twinpass.engine.embedded.engine import TorchEngine


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def assert_same_weights(device: TorchEngine, host: TorchEngine) -> None:
    """What two engines train, wherever each has it, with every update applied."""
    device.settle()
    host.settle()
    for name, tensor in device.parameters.items():
        assert torch.equal(tensor.cpu(), host.parameters[name]), name
