"""The gradient of an objective by reverse mode, over prompts whose keys and values come from the cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from twinpass.core import Request, Score, Scores, WeightsVersion, Work
from twinpass.engine.base import AdamStep, Gradient, RelativeStep, Slopes
from twinpass.engine.embedded.descent.feedback import Outer, norm
from twinpass.engine.embedded.descent.graph import Graph, linear
from twinpass.engine.embedded.descent.moments import Moments
from twinpass.engine.embedded.descent.relative import move
from twinpass.engine.embedded.linear.lanes import Running
from twinpass.engine.embedded.linear.products import Linear
from twinpass.engine.embedded.scoring.jobs import Job, SharedByLanes
from twinpass.engine.embedded.scoring.packing import common_length, groups
from twinpass.engine.embedded.scoring.passes import alone
from twinpass.engine.embedded.scoring.plain import trace_plain
from twinpass.engine.embedded.scoring.scorer import PackedScorer
from twinpass.errors import MissedParameterError, ModelError
from twinpass.model.causal import CausalModel
from twinpass.model.trainable import Trained


@dataclass
class Descent:
    """Gradients of the weights as they stand, steps along them, and AdamW's moments.

    Args:
        scorer: runs packed batches; None where the model runs by its own forward.
        score: scores of requests under the base lane, without a graph.
        version: names the base lane's weights.
        shared_by_lanes: what lanes share now; it gets no graph.
        rows: about how many rows have a graph at a time.
        linear: how layers multiply in one, in packed batches.
    """

    causal: CausalModel
    trained: Trained
    scorer: PackedScorer | None
    score: Callable[[Sequence[Request]], Scores]
    version: Callable[[], WeightsVersion]
    shared_by_lanes: Callable[[], SharedByLanes | None]
    rows: int
    linear: Linear = linear
    moments: Moments = field(default_factory=Moments)

    def gradient(self, requests: Sequence[Request], slopes: Slopes) -> Gradient:
        """The gradient, in one pass; where its graph would be too large, in parts, after one that scores.

        Raises:
            MissedParameterError: a trained tensor takes no part in the scores.
        """
        parts = self._cut(requests)
        total: dict[str, Tensor] = {}
        with Graph.of(self.causal, self.trained.parameters, self.trained.loras) as graph:
            if len(parts) == 1:
                traced, work = self._trace(graph, requests)
                scores = Scores([[_array(own) for own in traced]], work)
                _add(total, graph.gradient(traced, _like(traced, slopes(scores.values[0]))))
            else:
                scores = self.score(requests)
                wanted = slopes(scores.values[0])
                for part in parts:
                    traced, work = self._trace(graph, requests[part])
                    scores = Scores(scores.values, scores.work + work, scores.cache)
                    _add(total, graph.gradient(traced, _like(traced, wanted[part])))
        if missed := [name for name in self.trained.parameters if name not in total]:
            raise MissedParameterError(
                f"{len(missed)} trained tensors take no part in the scores: {', '.join(missed[:5])}; train only what the model uses"
            )
        return Gradient(scores, norm(total), total)

    def descend(self, gradient: Gradient, step: AdamStep | RelativeStep) -> None:
        """One step of all that is trained, in place.

        Raises:
            ModelError: steps of this kind are not along such a gradient.
        """
        if isinstance(step, RelativeStep):
            move(self.causal, self.trained.parameters, gradient.tensors, step)
        elif any(isinstance(own, Outer) for own in gradient.tensors.values()):
            raise ModelError("AdamW takes a gradient that is formed; set [optimizer] kind = 'relative'")
        else:
            self.moments.move(self.trained.parameters, gradient.tensors, gradient.norm, step)

    def graph_bytes(self, requests: Sequence[Request]) -> int:
        """About the bytes of the largest graph, the gradient and the moments: measured on all answers of the longest prompt, and scaled up.

        It is read backwards, so that no keys and values of a real one are computed here, in other company than later.
        """
        longest = max(requests, key=self._own)
        start = len(longest.inputs) - self._own(longest) or len(longest.prompt)
        backwards = longest.prompt[:start][::-1] + longest.prompt[start:]
        tried = [replace(each, prompt=backwards) for each in requests if each.prompt == longest.prompt]
        saved: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # with its graph it would hold the node that it is saved by, and so itself, for ever

        with Graph.of(self.causal, self.trained.parameters, self.trained.loras) as graph:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                self._trace(graph, tried)
            known = {
                tensor.untyped_storage().data_ptr()
                for tensor in (*self.causal.model.parameters(), *graph.leaves.values())
                if tensor.layout is torch.strided
            }
        rows = max(self._rows(requests[part]) for part in self._cut(requests))
        own = sum(size for place, size in saved.items() if place not in known)
        trained = sum(tensor.nbytes for tensor in self.trained.parameters.values())
        return own * rows // self._rows(tried) + 3 * trained

    def _rows(self, requests: Sequence[Request]) -> int:
        """How many rows of these requests have a graph, at the most: tokens that several share are one."""
        if self.scorer is None:
            return sum(map(self._own, requests))
        places, own = dict[tuple[int, ...], int](), set[tuple[int, ...]]()
        for request in requests:
            shared = len(request.inputs) - self._own(request)
            place = places.setdefault(request.inputs[:shared], len(places))
            own.add((place, *request.inputs[shared:]))
        rows, previous = -len(places), tuple[int, ...]()
        for tokens in sorted(own):
            rows += len(tokens) - common_length(previous, tokens)
            previous = tokens
        return rows

    def _own(self, request: Request) -> int:
        """How many tokens of a request have a graph, at the most."""
        shared_by_lanes = self.shared_by_lanes()
        shared = (
            request.active_from
            if shared_by_lanes is not None and shared_by_lanes.sharing.tokens == "before_activation"
            else 0
        )
        return len(request.inputs) - shared

    def _cut(self, requests: Sequence[Request]) -> list[slice]:
        if self.scorer is None:
            return list(groups([request.inputs for request in requests], self.rows))
        return self.scorer.cut(self._job(requests), self.rows)

    def _job(self, requests: Sequence[Request], running: Running = alone) -> Job:
        return Job(requests, [self.version()], lambda versions: running, self.shared_by_lanes())

    def _trace(self, graph: Graph, requests: Sequence[Request]) -> tuple[list[Tensor], Work]:
        if self.scorer is not None:
            return self.scorer.trace(self._job(requests, graph.running), self.linear)
        starts = [request.active_from if self.trained.activated else 0 for request in requests]
        rows = self.causal.depth * sum(len(request.inputs) for request in requests)
        with torch.enable_grad():
            return trace_plain(self.causal, requests, starts, graph.running), Work(rows, rows)


def _array(score: Tensor) -> Score:
    return np.asarray(score.detach().double().cpu().numpy())


def _like(scores: Sequence[Tensor], slopes: Sequence[Score]) -> list[Tensor]:
    return [torch.from_numpy(np.asarray(slope)).to(score) for score, slope in zip(scores, slopes, strict=True)]


def _add(total: dict[str, Tensor], part: dict[str, Tensor]) -> None:
    for name, own in part.items():
        total[name] = total[name] + own if name in total else own
