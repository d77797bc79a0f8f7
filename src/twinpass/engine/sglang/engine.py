"""The SGLang engine: lanes are adapters, loaded from tensors and mixed in one batch; prefixes come from its radix cache."""

from collections import Counter
from collections.abc import Sequence, Set
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from twinpass.core import Lane, Probe, Request, Scores, Term, Tokens, Work
from twinpass.engine.base import Engine, require_fit
from twinpass.engine.embedded.causal import CausalModel
from twinpass.engine.embedded.lanes import LaneWeights
from twinpass.engine.embedded.trainable import Trained
from twinpass.engine.sglang.calls import Answer, Call, answer_of, calls_of, score_of, shared_prefixes
from twinpass.engine.sglang.server import Server
from twinpass.errors import ModelError
from twinpass.perturb.noise import Distribution
from twinpass.reuse.plan import Spans


class SglangEngine(Engine):
    """Train adapters on a model that SGLang runs.

    The adapter itself is here; SGLang gets each lane's as an adapter of a name that is never used again. It keeps the keys
    and values of every adapter apart, so that none is ever read under other weights. Activated adapters share the base
    model's (:mod:`twinpass.engine.sglang.plugin`).

    Args:
        model: the model's shapes and configuration; its tensors may be on the meta device.
        base_hash: see :attr:`base_hash`.
        trained: an adapter.
        server: a running SGLang.
        noise: distribution of ``z``.
        resolution: see :attr:`resolution`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        base_hash: str,
        trained: Trained,
        server: Server,
        *,
        noise: Distribution = "binomial",
        resolution: float = 2.0**-23,
    ) -> None:
        if trained.adapter is None:
            raise ModelError(
                'SGLang trains adapters here: set [trainable] kind to "lora" or "activated", or train with [engine] kind = "torch"'
            )
        self._model, self._causal, self._trained, self._server = model, CausalModel(model), trained, server
        self._adapter, self._noise = trained.adapter, noise
        self._base_hash, self._resolution = base_hash, resolution
        self._loaded: dict[Lane, str] = {}
        self._sent: set[Tokens] = set()

    @property
    def base_hash(self) -> str:
        return self._base_hash

    @property
    def trained(self) -> int:
        return self._trained.parameters.numel

    @property
    def takes_spans(self) -> bool:
        return False

    @property
    def resolution(self) -> float:
        return self._resolution

    @property
    def layers(self) -> int:
        return self._causal.depth

    @property
    def keeps(self) -> bool:
        return False

    def effective_eps(self, eps: float) -> float:
        return eps

    def warm(self, requests: Sequence[Request], probes: Sequence[Probe], since: Set[int | None]) -> None:
        """There is nothing to do: what SGLang's cache lacks it computes."""

    def score(self, requests: Sequence[Request], lanes: Sequence[Lane], spans: Spans | None = None) -> Scores:
        if spans is not None or any(lane != lane.exact or lane.linear for lane in lanes):
            raise ModelError(
                'SGLang\'s lanes are exact: use [reuse] policy = "auto", and [estimator] kind "spsa" or "one_sided"'
            )
        require_fit(requests, self._causal.window, self._causal.vocabulary, activated=self._trained.activated)
        if not requests or not lanes:
            return Scores([[] for _ in lanes], Work())
        names = self._load(lanes)
        calls, which = calls_of(requests, activated=self._trained.activated)
        rows = self._send_ahead(calls, names)
        metas = self._server.score(calls * len(names), [name for name in names for _ in calls])
        answers = [answer_of(call, meta) for call, meta in zip(calls * len(names), metas, strict=True)]
        by_lane = [answers[i * len(calls) : (i + 1) * len(calls)] for i in range(len(lanes))]
        self._forget_evicted(calls, answers)
        values = [[score_of(request, own[at]) for request, at in zip(requests, which, strict=True)] for own in by_lane]
        return Scores(values, self._work(requests, len(lanes), rows + sum(answer.rows for answer in answers)))

    def _send_ahead(self, calls: Sequence[Call], names: Sequence[str]) -> int:
        """Bring into SGLang's cache what the calls share; the rows that took."""
        rows = 0
        if self._trained.activated:
            new = {call.tokens[: call.active_from] for call in calls} - self._sent - {()}
            for part in [*shared_prefixes(new), sorted(new)]:
                rows += self._server.fill(part, [None])
            self._sent |= new
            return rows
        for part in shared_prefixes(call.tokens for call in calls):
            rows += self._server.fill(part, names)
        return rows

    def _forget_evicted(self, calls: Sequence[Call], answers: Sequence[Answer]) -> None:
        """Prefixes that SGLang no longer had are sent again next time."""
        for i, answer in enumerate(answers):
            call = calls[i % len(calls)]
            if call.active_from is not None and answer.cached < call.active_from:
                self._sent.discard(call.tokens[: call.active_from])

    def _work(self, requests: Sequence[Request], lanes: int, rows: int) -> Work:
        demand = lanes * self.layers * sum(len(request.inputs) for request in requests)
        computed = self.layers * rows
        source = "activated" if self._trained.activated else "shared_prefix"
        return Work(demand, computed, {source: demand - computed})

    def _load(self, lanes: Sequence[Lane]) -> list[str]:
        """The adapters of these lanes, by name; those of others are unloaded."""
        distinct = list(dict.fromkeys(lanes))
        if doubled := [lane for lane, count in Counter(lanes).items() if count > 1]:
            raise ModelError(f"{doubled[0]} is asked for twice; score it once")
        self._unload(set(self._loaded) - set(distinct))
        new = [lane for lane in distinct if lane not in self._loaded]
        weights = LaneWeights(self._trained.parameters, self._noise, new)
        parts: list[dict[str, Tensor]] = [{} for _ in new]
        for name in self._trained.parameters if new else ():
            for part, tensor in zip(parts, weights.whole(name), strict=True):
                part[f"base_model.model.{name}"] = tensor.contiguous()
        config = self._adapter.peft_config("")
        config.pop("alora_invocation_tokens", None)
        for lane, tensors in zip(new, parts, strict=True):
            self._loaded[lane] = self._server.load(tensors, config)
        return [self._loaded[lane] for lane in lanes]

    def _unload(self, lanes: Set[Lane]) -> None:
        for lane in lanes:
            self._server.unload(self._loaded.pop(lane))

    def update(self, terms: Sequence[Term]) -> None:
        if terms:
            self._unload(set(self._loaded))
            self._trained.parameters.add(terms, self._noise)

    def reset(self) -> None:
        self._unload(set(self._loaded))
        self._adapter.reset()

    def save(self, run: Path) -> Path:
        return self._trained.save(self._model, run)

    def close(self) -> None:
        self._server.close()
