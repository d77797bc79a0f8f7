"""What a pass says about the task beside its scores: modules' inputs, and the exact error at the last layer.

An answer is read where the tokens before it end. The loss reaches the state that leaves the last layer there through the final
norm and the head alone, so that its derivative by that state is exact and needs no graph through any layer.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from twinpass.core import Score, Work
from twinpass.engine.embedded.linear.lanes import LaneLayout, Running
from twinpass.engine.embedded.linear.products import own_products
from twinpass.engine.embedded.scoring.packing import Reads, Rows
from twinpass.model.causal import CausalModel, is_linear, log_softmax
from twinpass.model.space import Observed

BLOCK_BYTES = 32 << 20
"""Largest logits tensor that is differentiated at a time."""


@dataclass
class Part:
    """What was seen of one batch: rows [n] (sorted) that are read, and for each its token, position, state, modules' inputs, and what norms took of their outputs.

    ``units`` are the derivatives of each row's score by its state, where a row has but one.
    """

    reads: Reads
    rows: list[Rows] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    inputs: list[dict[str, Tensor]] = field(default_factory=list)
    normed: list[dict[str, Tensor]] = field(default_factory=list)
    units: list[Tensor] = field(default_factory=list)

    @cached_property
    def once(self) -> bool:
        """Whether every row is read once, for a log-probability: its derivative is told as it is scored, and the slope only scales it."""
        rows = np.concatenate([np.empty(0, np.int64), *self.reads.rows])
        return self.reads.columns is None and len(np.unique(rows)) == len(rows)


class Observer:
    """Watches the passes of one lane.

    Args:
        causal: the model.
        paths: the modules whose inputs are wanted.
    """

    def __init__(self, causal: CausalModel, paths: Sequence[str]) -> None:
        self._causal, self._paths = causal, tuple(paths)
        self._modules = {path: causal.model.get_submodule(path) for path in self._paths}
        self._seen: dict[str, Tensor] = {}
        self._left: dict[str, Tensor] = {}
        self._normed: dict[str, Tensor] = {}
        self._norms: dict[str, nn.Module] = {}
        self._last: list[Tensor] = []
        self._at = torch.empty(0, dtype=torch.long)
        self.parts: list[Part] = []

    @contextmanager
    def watching(self, at: Tensor) -> Iterator[None]:
        """Around one run through the layers, of whose rows those ``at`` [n] are kept: all of them would be the inputs of every module at once."""
        self._at = at
        for seen in (self._seen, self._left, self._normed, self._last):
            seen.clear()
        layers = cast(nn.ModuleList, self._causal.model.get_submodule(self._causal.layers_path))
        with ExitStack() as stack:
            for path, module in self._modules.items():
                stack.callback(module.register_forward_pre_hook(self._hook(path)).remove)
                stack.callback(module.register_forward_hook(self._behind(path)).remove)
            for layer in {self._causal.layer_of(path): None for path in self._paths}:
                stack.callback(layers[layer].register_forward_hook(self._end).remove)
                for norm in _small(layers[layer]):
                    stack.callback(norm.register_forward_pre_hook(self._enter).remove)
            stack.callback(layers[-1].register_forward_hook(self._leave).remove)
            yield

    def _hook(self, path: str) -> Any:
        def see(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            self._seen[path] = self._kept(arguments[0])

        return see

    def _behind(self, path: str) -> Any:
        def see(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            self._left[path] = output

        return see

    def _enter(self, norm: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Some architectures, such as Gemma 2 and OLMo 2, norm what a module writes before it is added."""
        for path, output in self._left.items():
            if arguments and arguments[0] is output:
                self._norms[path], self._normed[path] = norm, self._kept(output)

    def _end(self, layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        self._left.clear()

    def _leave(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        self._last.append(self._kept(output[0] if isinstance(output, tuple) else output))

    def _kept(self, tensor: Tensor) -> Tensor:
        return tensor.detach().reshape(-1, tensor.shape[-1])[self._at]

    def take(self, part: Part, rows: Rows, tokens: Tensor) -> None:
        """Keep what was just seen, of ``rows`` [n] of the batch, whose ``tokens`` [1, R] are those of all that ran."""
        part.rows.append(rows)
        part.tokens.append(tokens[0, self._at])
        part.states.append(self._last[-1])
        part.inputs.append(dict(self._seen))
        part.normed.append(dict(self._normed))

    def score(self, part: Part, tokens: Tensor, at: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        """Log-probabilities [1, k] of ``targets`` at ``rows`` of the states ``at`` of those just kept, of ``tokens`` [1, n]; their derivatives are kept."""
        with torch.enable_grad():
            state = self._last[-1][at][None].clone().requires_grad_(True)
            picked = log_softmax(self._causal.finish(tokens, state))[:, rows, targets]
            (unit,) = torch.autograd.grad(picked.sum(), state)
        part.units.append(unit[0].detach())
        return picked.detach()

    def inputs(self) -> dict[str, Tensor]:
        """What entered each module, [N, in] over all parts."""
        return {path: torch.cat([seen[path] for part in self.parts for seen in part.inputs]) for path in self._paths}

    def states(self) -> Tensor:
        """What left the last layer, [N, size]."""
        return torch.cat([state for part in self.parts for state in part.states])

    def observed(self, errors: Tensor, work: Work) -> Observed:
        """All of it, with the derivative of the loss by each state."""
        scale = float(self.states().double().norm(dim=-1).mean())
        added = {path: self._added(path) for path in self._paths}
        return Observed(self.inputs(), errors, scale, work, self.normed(errors), added)

    def errors(self, slopes: Sequence[Score], running: Running) -> Tensor:
        """The derivative of the loss by each state, [N, size].

        Args:
            slopes: the loss's derivatives by the scores of every request, in the order that they were scored in.
            running: what the states were computed under.
        """
        left, found = list(slopes), []
        for part in self.parts:
            own, left = left[: len(part.reads.rows)], left[len(part.reads.rows) :]
            found.append(self._errors(part, own, running))
        return torch.cat(found)

    def written(self, errors: Tensor) -> dict[str, Tensor]:
        """The derivative by each module's output, [N, size], if what is added to the stream gets ``errors``: the share of them that is added, past a norm if one stands between."""
        scaled = {share: errors * share for share in {self._added(path) for path in self._paths}}
        plain = {path: scaled[self._added(path)] for path in self._paths}
        return plain | {path: own * self._added(path) for path, own in self.normed(errors).items()}

    def _added(self, path: str) -> float:
        return self._causal.added[self._causal.layer_of(path)]

    def normed(self, errors: Tensor) -> dict[str, Tensor]:
        """The same of those modules alone that a norm stands behind."""
        return {path: self._before_norm(path, norm, errors) for path, norm in self._norms.items()}

    def _before_norm(self, path: str, norm: nn.Module, errors: Tensor) -> Tensor:
        outputs = torch.cat([seen[path] for part in self.parts for seen in part.normed])
        with torch.enable_grad():
            output = outputs.clone().requires_grad_(True)
            (found,) = torch.autograd.grad(norm(output), output, errors)
        return found

    def _errors(self, part: Part, slopes: Sequence[Score], running: Running) -> Tensor:
        order = np.concatenate(part.rows)
        rows = np.searchsorted(order, np.concatenate(part.reads.rows))
        if part.once:
            units, scale = torch.cat(part.units), np.zeros(len(order))
            scale[rows] = np.concatenate(slopes)
            return units * torch.from_numpy(scale).to(units)[:, None]
        targets, weights = np.concatenate(part.reads.targets), np.concatenate(slopes)
        if part.reads.columns is not None:
            targets = np.searchsorted(part.reads.columns, targets)
        tokens, states = torch.cat(part.tokens), torch.cat(part.states)
        step = max(1, BLOCK_BYTES // (4 * self._causal.vocabulary))
        found, device = [], self._causal.device
        for first in range(0, len(order), step):
            few = slice(first, first + step)
            here = (rows >= first) & (rows < first + step)
            columns = part.reads.columns
            asked = device.send(rows[here] - first, targets[here], *(() if columns is None else (columns,)))
            layout = LaneLayout(1, len(states[few]), columns=None if columns is None else asked[2])
            with running(layout):
                found.append(self._errors_of(tokens[few], states[few], asked[0], asked[1], weights[here], layout))
        return torch.cat(found)

    def _errors_of(
        self, tokens: Tensor, states: Tensor, rows: Tensor, targets: Tensor, weights: Score, layout: LaneLayout
    ) -> Tensor:
        with own_products(self._causal.linears), torch.enable_grad():
            state = states[None].clone().requires_grad_(True)
            logits = self._causal.finish(tokens[None], state)
            values = logits if layout.columns is not None else log_softmax(logits)
            picked = values[0, rows, targets]
            total = (picked * torch.from_numpy(weights).to(picked)).sum()
            (error,) = torch.autograd.grad(total, state)
        return error[0].detach()


def _small(layer: nn.Module) -> Iterator[nn.Module]:
    """The parts of a layer that have no parts and multiply by no matrix: norms are among them."""
    for module in layer.modules():
        if not is_linear(module) and not any(True for _ in module.children()):
            yield module
