"""The SGLang engine: lanes are variants that SGLang has, prefixes come from its radix cache.

SGLang tells probabilities and no more. Directions are fitted to what enters modules, too: an engine in this process, ``beside``
SGLang, with the same weights and the same updates, sees that.
"""

from collections import Counter
from collections.abc import Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

from twinpass.core import (
    Continuation,
    Continuations,
    Decode,
    Lane,
    Probe,
    Prompt,
    Request,
    Sampling,
    Scores,
    Term,
    Tokens,
    Work,
)
from twinpass.engine.base import Engine, Slopes, require_fit, require_room
from twinpass.engine.sglang.calls import SHARED, Call, Reply, calls_of, reply_of, score_of, shared_prefixes, written_of
from twinpass.engine.sglang.server import Server, Variant
from twinpass.engine.sglang.variants import Variants
from twinpass.errors import ModelError
from twinpass.model.causal import CausalModel
from twinpass.reuse.plan import Spans

if TYPE_CHECKING:
    from torch import Tensor

    from twinpass.model.space import Observed, Space


class SglangEngine(Engine):
    """Train a model that SGLang runs.

    Args:
        causal: the model's shapes and configuration; its tensors may be on the meta device.
        base_hash: see :attr:`base_hash`.
        server: a running SGLang.
        variants: what is trained, and how its lanes come to SGLang.
        resolution: see :attr:`resolution`.
        beside: what :meth:`observe` asks, where directions are fitted: an engine at the same weights, closed with this one.
    """

    def __init__(
        self,
        causal: CausalModel,
        base_hash: str,
        server: Server,
        variants: Variants,
        *,
        resolution: float = 2.0**-23,
        beside: Engine | None = None,
    ) -> None:
        self._causal, self._server, self._variants = causal, server, variants
        self._base_hash, self._resolution, self._beside = base_hash, resolution, beside
        self._sent: set[Tokens] = set()

    @property
    def base_hash(self) -> str:
        return self._base_hash

    @property
    def trained(self) -> int:
        return self._variants.trained

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
        return self._variants.effective_eps(eps)

    def warm(self, requests: Sequence[Request], probes: Sequence[Probe], since: Set[int | None]) -> None:
        """There is nothing to do: what SGLang's cache lacks it computes."""

    def score(self, requests: Sequence[Request], lanes: Sequence[Lane], spans: Spans | None = None) -> Scores:
        _require_exact(lanes, spans)
        activated = self._variants.activated
        require_fit(requests, self._causal.window, self._causal.vocabulary, activated=activated)
        if not requests or not lanes:
            return Scores([[] for _ in lanes], Work())
        calls, which = calls_of(requests, activated=activated)
        rows, by_lane = 0, list[list[Reply]]()
        for group in self._variants.groups(lanes):
            rows += self._send_ahead(calls, group)
            metas = self._server.score(calls * len(group), [variant for variant in group for _ in calls])
            answers = [
                reply_of(call, meta, self._server.place) for call, meta in zip(calls * len(group), metas, strict=True)
            ]
            by_lane += [answers[i * len(calls) : (i + 1) * len(calls)] for i in range(len(group))]
            self._forget_evicted(calls, answers)
        values = [[score_of(request, own[at]) for request, at in zip(requests, which, strict=True)] for own in by_lane]
        return Scores(
            values, self._work(requests, len(lanes), rows + sum(each.rows for own in by_lane for each in own))
        )

    def generate(
        self, prompts: Sequence[Prompt], lanes: Sequence[Lane], sampling: Sampling, decode: Decode
    ) -> Continuations:
        _require_exact(lanes, None)
        activated = self._variants.activated
        require_room(prompts, sampling, self._causal.window, self._causal.vocabulary, activated=activated)
        if not prompts or not lanes:
            return Continuations([[] for _ in lanes], Work())
        calls = [
            Call(prompt.tokens, len(prompt.tokens) - 1, prompt.active_from if activated else None) for prompt in prompts
        ]
        rows, values = 0, list[list[Continuation]]()
        for group in self._variants.groups(lanes):
            rows += self._send_ahead(calls, group)
            metas = self._server.write(
                calls * len(group), [variant for variant in group for _ in calls], [*prompts] * len(group), sampling
            )
            written = [written_of(meta, sampling, decode) for meta in metas]
            rows += sum(each.rows for each in written)
            values += [
                [each.text for each in written[i * len(calls) : (i + 1) * len(calls)]] for i in range(len(group))
            ]
        read = [
            len(prompt.tokens) + len(text.tokens) - 1
            for own in values
            for prompt, text in zip(prompts, own, strict=True)
        ]
        demand, computed = self.layers * sum(read), self.layers * rows
        source = "activated" if activated else "shared_prefix"
        return Continuations(values, Work(demand, computed, {source: demand - computed}))

    def _send_ahead(self, calls: Sequence[Call], group: Sequence[Variant]) -> int:
        """Bring into SGLang's cache what the calls share; the rows that took."""
        rows = 0
        if self._variants.activated:
            new = {call.tokens[: call.active_from] for call in calls} - self._sent - {()}
            for part in [*shared_prefixes(new), sorted(new)]:
                rows += self._server.fill(part, [Variant()])
            self._sent |= new
            return rows
        times = Counter(call.tokens for call in calls)
        again = [tokens[:-1] for tokens, count in times.items() if count > 1 and len(tokens) > SHARED]
        for part in [*shared_prefixes(times), again]:
            rows += self._server.fill(part, group)
        return rows

    def _forget_evicted(self, calls: Sequence[Call], answers: Sequence[Reply]) -> None:
        """Prefixes that SGLang no longer had are sent again next time."""
        for i, answer in enumerate(answers):
            call = calls[i % len(calls)]
            page = self._server.page_size
            if call.active_from is not None and answer.cached < call.active_from // page * page:
                self._sent.discard(call.tokens[: call.active_from])

    def _work(self, requests: Sequence[Request], lanes: int, rows: int) -> Work:
        demand = lanes * self.layers * sum(len(request.inputs) for request in requests)
        computed = self.layers * rows
        source = "activated" if self._variants.activated else "shared_prefix"
        return Work(demand, computed, {source: demand - computed})

    def observe(self, requests: Sequence[Request], slopes: Slopes) -> "Observed":
        return super().observe(requests, slopes) if self._beside is None else self._beside.observe(requests, slopes)

    @property
    def outputs(self) -> "Tensor | None":
        return None if self._beside is None else self._beside.outputs

    def use(self, space: "Space") -> None:
        self._variants.use(space)
        if self._beside is not None:
            self._beside.use(space)

    def update(self, terms: Sequence[Term]) -> None:
        if not terms:
            return
        self._variants.update(terms)
        if self._beside is not None:
            self._beside.update(terms)

    def reset(self) -> None:
        self._variants.reset()
        if self._beside is not None:
            self._beside.reset()

    def save(self, run: Path) -> Path:
        return self._variants.save(run)

    def close(self) -> None:
        if self._server.outlives:
            self._variants.close()
        if self._beside is not None:
            self._beside.close()
        self._server.close()


def _require_exact(lanes: Sequence[Lane], spans: Spans | None) -> None:
    if spans is not None or any(lane != lane.exact or lane.linear for lane in lanes):
        raise ModelError(
            'SGLang\'s lanes are exact: use [reuse] policy = "auto", and [estimator] kind "spsa" or "one_sided"'
        )
    if len(set(lanes)) < len(lanes):
        raise ModelError(f"one of {len(lanes)} lanes is asked for twice; score it once")
