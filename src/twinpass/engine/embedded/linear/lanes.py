"""The weights of several lanes, formed piece by piece in a scratch buffer; the base weights are only read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import groupby, pairwise

import numpy as np
import torch
from torch import Tensor

from twinpass.core import Lane, Probe
from twinpass.perturb.noise import Distribution
from twinpass.perturb.parameters import Arena, Parameters
from twinpass.perturb.shard import Shard

TILE = 1 << 20
"""Elements of a weight matrix perturbed at a time, times the backend's growth: small enough for the cache, large enough for a fast product."""


@dataclass(frozen=True, slots=True)
class LaneLayout:
    """How lanes lie in a pass's tensors: ``lanes`` along the first axis, each with ``rows`` rows.

    Adapters act on rows from ``active_from`` on; only the model's own forward, one lane at a time, sets it. The head computes
    the logits of ``columns`` only, if there are any.
    """

    lanes: int
    rows: int
    active_from: int = 0
    columns: Tensor | None = None

    def splits(self, tensor: Tensor) -> bool:
        """Whether the first axis counts lanes, or all rows lane after lane."""
        if self.lanes == 1:
            return True
        first, *others = tensor.shape
        return first == self.lanes * self.rows or (first == self.lanes and self.rows in others)


Running = Callable[[LaneLayout], AbstractContextManager[None]]
"""Opens the tandem around a pass."""


@dataclass(slots=True)
class LaneWeights:
    """Perturbed parameters on demand, for the lanes of one forward pass.

    ``visited`` collects the names that were used, so that a parameter left out is noticed.
    """

    parameters: Parameters
    distribution: Distribution
    lanes: Sequence[Lane]
    visited: set[str] = field(default_factory=set)
    _scratch: Tensor | None = None
    _formed: dict[str, Tensor] | None = None
    _perturbed: frozenset[str] | None = None

    @property
    def perturbed(self) -> frozenset[str]:
        """Names of the parameters that some lane has a value of its own of."""
        if self._perturbed is None:
            blocks = {lane.probe.block for lane in self.lanes if lane.probe is not None}
            moved = self.parameters.moves
            self._perturbed = frozenset(name for name in self.parameters if any(moved(name, block) for block in blocks))
        return self._perturbed

    def probe(self, name: str, lane: Lane) -> Probe | None:
        """The lane's direction, if it moves this parameter."""
        moved = lane.probe is not None and self.parameters.moves(name, lane.probe.block)
        return lane.probe if moved else None

    def tiles(self, name: str) -> Iterator[tuple[int, int, Tensor]]:
        """``(first, last, weights [lanes, last - first, columns])`` over the rows of a matrix.

        The buffer is reused: each tile is valid until the next is asked for.
        """
        columns = self.parameters[name].shape[1]
        for first, last in self.spans(name):
            tile = self._form(name, first * columns, last * columns)
            yield first, last, tile.view(len(self.lanes), last - first, columns)

    def spans(self, name: str) -> Iterator[tuple[int, int]]:
        """The rows of a matrix that are worked on at a time: first, and one past the last."""
        rows, columns = self.parameters[name].shape
        step = max(1, TILE * self.parameters.backend.growth // columns)
        for first in range(0, rows, step):
            yield first, min(rows, first + step)

    def whole(self, name: str) -> Tensor:
        """All lanes' copies of a parameter [lanes, *shape], in memory of their own; for small ones."""
        tensor = self.parameters[name]
        if self.parameters.arena is not None:
            self.visited.add(name)
            self._formed = self._form_all(self.parameters.arena) if self._formed is None else self._formed
            return self._formed[name]
        return self._form(name, 0, tensor.numel()).view(len(self.lanes), *tensor.shape).clone()

    def rows(self, name: str, ids: Tensor) -> Tensor:
        """Rows of an embedding matrix: ``ids`` holds equally many for every lane, lane after lane, in any shape."""
        self.visited.add(name)
        table = self.parameters[name]
        width = table.shape[1]
        backend = self.parameters.backend
        out = torch.empty((ids.numel(), width), dtype=table.dtype, device=table.device)
        flat, target = self.parameters.flat[name].reshape(-1, width), backend.view(out).reshape(-1, width)
        index = backend.index(ids.reshape(-1))
        key, _ = self.parameters.keys_of[name]
        share = len(index) // len(self.lanes)
        for i, lane in enumerate(self.lanes):
            part = slice(i * share, (i + 1) * share)
            if (probe := self.probe(name, lane)) is None:
                target[part] = flat[index[part]]
            else:
                backend.kernels.gather(flat, index[part], target[part], lane.scale, probe.seed, key, self.distribution)
        return out.view(*ids.shape, width)

    def _form_all(self, arena: Arena) -> dict[str, Tensor]:
        """All lanes' copies of all parameters of the arena, drawn at once."""
        like, backend = next(iter(self.parameters.values())), self.parameters.backend
        out = like.new_empty((len(self.lanes), len(arena.flat)))
        view = backend.view(out).reshape(out.shape)
        for probe, first, last in runs([lane.probe for lane in self.lanes]):
            if probe is None:
                view[first:last] = arena.flat
            else:
                scales = np.array([lane.scale for lane in self.lanes[first:last]])
                part = (arena.flat, arena.bounds, view[first:last], scales)
                backend.kernels.perturb_each(*part, probe.seed, arena.keys, self.distribution)
        places = zip(self.parameters.items(), pairwise(arena.bounds.tolist()), strict=True)
        return {
            name: out[:, first:last].view(len(self.lanes), *tensor.shape) for (name, tensor), (first, last) in places
        }

    def _form(self, name: str, start: int, stop: int) -> Tensor:
        self.visited.add(name)
        flat = self.parameters.flat[name][start:stop]
        size = len(self.lanes) * (stop - start)
        like, backend = self.parameters[name], self.parameters.backend
        if self._scratch is None or self._scratch.numel() < size or self._scratch.dtype != like.dtype:
            self._scratch = like.new_empty(size)
        out = self._scratch[:size].view(len(self.lanes), stop - start)
        view = backend.view(out).reshape(out.shape)
        key, _ = self.parameters.keys_of[name]
        for probe, first, last in runs([self.probe(name, lane) for lane in self.lanes]):
            if probe is None:
                view[first:last] = flat
            else:
                scales = np.array([lane.scale for lane in self.lanes[first:last]])
                part = (flat, view[first:last], scales)
                backend.kernels.perturb(
                    *part, probe.seed, key, self.distribution, Shard.contiguous(start, stop - start)
                )
        return out


def runs(probes: Sequence[Probe | None]) -> Iterator[tuple[Probe | None, int, int]]:
    """Neighbouring lanes of the same direction: it, and the first and one past the last of them."""
    first = 0
    for probe, group in groupby(probes):
        last = first + len(list(group))
        yield probe, first, last
        first = last
