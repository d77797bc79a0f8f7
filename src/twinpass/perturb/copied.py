"""Weights of any dtype, on any device, moved exactly: ``theta`` stays in a copy, and each lane is written from it."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from twinpass.core import Lane, Term
from twinpass.perturb import kernels
from twinpass.perturb.layout import flat_view
from twinpass.perturb.moving import MovingWeights
from twinpass.perturb.noise import Distribution
from twinpass.perturb.parameters import Parameters


class CopiedWeights(MovingWeights):
    """A model's weights, written from a copy of them in main memory: the bits are those of the tandem forward.

    Args:
        theta: the copy; it is updated, and never perturbed.
        live: by name, the tensors that a model computes with, equal to ``theta``, on whatever device.
        distribution: of ``z``.
    """

    def __init__(self, theta: Parameters, live: Mapping[str, Tensor], distribution: Distribution) -> None:
        self.theta = theta
        self._live, self._distribution = live, distribution
        self._stale = set[str]()

    def move_to(self, lane: Lane) -> None:
        moved = {name for name in self.theta if lane.probe is not None and self.theta.moves(name, lane.probe.block)}
        for name, tensor in self.theta.items():
            if name in moved:
                self._write(name, lane)
            elif name in self._stale:
                self._live[name].copy_(tensor)
        self._stale = moved

    def _write(self, name: str, lane: Lane) -> None:
        assert lane.probe is not None
        live = self._live[name]
        here = live if live.device.type == "cpu" and live.is_contiguous() else torch.empty_like(self.theta[name])
        part = (self.theta.flat[name], flat_view(here).reshape(1, -1), np.array([lane.scale]))
        key, _ = self.theta.keys_of[name]
        kernels.perturb(*part, lane.probe.seed, key, self._distribution, self.theta.shards[name])
        if here is not live:
            live.copy_(here)

    def update(self, terms: Sequence[Term]) -> None:
        self.theta.add(terms, self._distribution)
        blocks = {term.block for term in terms}
        self._stale |= {name for name in self.theta if any(self.theta.moves(name, block) for block in blocks)}
