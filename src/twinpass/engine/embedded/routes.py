"""How the model runs under lanes: packed, with all that lanes share, or each sequence by its own forward."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from twinpass.core import (
    BASE,
    CacheStatistics,
    Continuation,
    Decode,
    Lane,
    Prompt,
    Request,
    Sampling,
    Scores,
    WeightsVersion,
    Work,
)
from twinpass.engine.embedded.linear.lanes import LaneWeights, Running
from twinpass.engine.embedded.linear.tandem import Tandem
from twinpass.engine.embedded.scoring.jobs import Job, Result, SharedByLanes
from twinpass.engine.embedded.scoring.ledger import Ledger
from twinpass.engine.embedded.scoring.linearised import score_linear
from twinpass.engine.embedded.scoring.observe import Observer
from twinpass.engine.embedded.scoring.passes import RunningOf, alone
from twinpass.engine.embedded.scoring.plain import score_plain
from twinpass.engine.embedded.scoring.scorer import PackedScorer
from twinpass.engine.embedded.scoring.sharing import SharingByBlock
from twinpass.engine.embedded.scoring.writing import Order, PackedWriter
from twinpass.engine.embedded.scoring.writing_plain import write_plain
from twinpass.errors import ModelError
from twinpass.model.causal import CausalModel
from twinpass.model.trainable import Trained
from twinpass.perturb.inplace import InPlaceWeights
from twinpass.perturb.noise import Distribution
from twinpass.reuse.plan import Spans


@dataclass(frozen=True, slots=True)
class LaneRunner:
    """Makes the modules that own trainable weights compute lanes."""

    trained: Trained
    tandem: Tandem
    noise: Distribution

    def weights(self, lanes: Sequence[Lane]) -> LaneWeights:
        """Trainable weights under lanes."""
        return LaneWeights(self.trained.parameters, self.noise, lanes)

    def running(self, weights: LaneWeights) -> Running:
        """What runs the model's modules under them."""
        return lambda layout: self.tandem.running(weights, layout)

    def require_base(self) -> None:
        """Make sure that the model without its adapters is the one that training began with.

        Raises:
            ModelError: its own weights are trained.
        """
        if not self.trained.adapters:
            raise ModelError(
                "the weights are trained themselves, and theta_0 is not at hand: set task.beta = 0, or train adapters"
            )

    def starts(self, inputs: Sequence[Request] | Sequence[Prompt]) -> list[int]:
        """The first token of each that trained weights act on."""
        return [each.active_from if self.trained.activated else 0 for each in inputs]


@dataclass(frozen=True, slots=True)
class Under:
    """``lanes`` as modules add them to the weights in memory, and the ``versions`` of the base weights that come of it.

    Both are the same but in in-place mode, where the memory holds a lane's own weights and modules add nothing to them.
    """

    lanes: Sequence[Lane]
    versions: Sequence[Lane]

    @classmethod
    def tandem(cls, lanes: Sequence[Lane]) -> "Under":
        """Over the base weights."""
        return cls(lanes, lanes)


class Route(ABC):
    """How requests and prompts run under lanes."""

    @abstractmethod
    def score(
        self, requests: Sequence[Request], under: Under, spans: Spans | None = None, observer: Observer | None = None
    ) -> Result:
        """``[lane][request]`` scores."""

    @abstractmethod
    def write(
        self, prompts: Sequence[Prompt], under: Under, sampling: Sampling, decode: Decode
    ) -> tuple[list[list[Continuation]], Work]:
        """``[lane][prompt]`` texts, and the work they took."""

    @abstractmethod
    def reference(self, requests: Sequence[Request]) -> Result:
        """Scores of the model as it is, without what stands beside its modules."""

    @abstractmethod
    def write_reference(
        self, prompts: Sequence[Prompt], sampling: Sampling, decode: Decode
    ) -> tuple[list[list[Continuation]], Work]:
        """Its texts, of the one lane that it is."""

    @property
    @abstractmethod
    def held(self) -> CacheStatistics:
        """What is kept in the cache."""


@dataclass(frozen=True, slots=True)
class PackedRoute(Route):
    """All lanes in packed passes.

    Args:
        one_by_one: the weights in memory are a lane's own, which no module has to add.
    """

    runner: LaneRunner
    scorer: PackedScorer
    ledger: Ledger
    sharing: SharingByBlock
    one_by_one: bool

    def score(
        self, requests: Sequence[Request], under: Under, spans: Spans | None = None, observer: Observer | None = None
    ) -> Result:
        with self._lanes(under) as (own, running_of, shared_by_lanes):
            return self.scorer.score(Job(requests, own, running_of, shared_by_lanes, spans, observer=observer))

    def write(
        self, prompts: Sequence[Prompt], under: Under, sampling: Sampling, decode: Decode
    ) -> tuple[list[list[Continuation]], Work]:
        with self._lanes(under) as (own, running_of, shared_by_lanes):
            return PackedWriter(self.scorer).write(Order(prompts, own, running_of, sampling, decode, shared_by_lanes))

    def reference(self, requests: Sequence[Request]) -> Result:
        version, shared_by_lanes = self.ledger.shared(self.sharing.depth), self.sharing.shared_by_lanes({None})
        return self.scorer.score(Job(requests, [version], lambda versions: alone, shared_by_lanes))

    def write_reference(
        self, prompts: Sequence[Prompt], sampling: Sampling, decode: Decode
    ) -> tuple[list[list[Continuation]], Work]:
        version, shared_by_lanes = self.ledger.shared(self.sharing.depth), self.sharing.shared_by_lanes({None})
        prompts = [replace(prompt, active_from=len(prompt.tokens) - 1) for prompt in prompts]
        order = Order(prompts, [version], lambda versions: alone, sampling, decode, shared_by_lanes)
        return PackedWriter(self.scorer).write(order)

    @property
    def held(self) -> CacheStatistics:
        return self.scorer.held

    @contextmanager
    def _lanes(self, under: Under) -> Iterator[tuple[list[WeightsVersion], RunningOf, SharedByLanes | None]]:
        """Names of the lanes' weights, what makes the model compute some of them, and what all of them share.

        Raises:
            ModelError: at the end of the block, where a module has used a perturbed weight that it does not own.
        """
        used: dict[tuple[Lane, ...], LaneWeights] = {}

        def running_of(which: Sequence[WeightsVersion]) -> Running:
            chosen = tuple(under.lanes if self.one_by_one else [version.lane for version in which])
            return self.runner.running(used.setdefault(chosen, self.runner.weights(chosen)))

        blocks = {lane.probe.block for lane in under.versions if lane.probe is not None}
        shared_by_lanes = self.sharing.shared_by_lanes(blocks or {None})
        yield [self.ledger.lane(lane) for lane in under.versions], running_of, shared_by_lanes
        self.runner.tandem.check(used.values())


@dataclass(frozen=True, slots=True)
class OwnForward(Route):
    """One lane after another, each sequence by the model's own forward: for models that packing does not suit."""

    runner: LaneRunner
    causal: CausalModel

    def score(
        self, requests: Sequence[Request], under: Under, spans: Spans | None = None, observer: Observer | None = None
    ) -> Result:
        values, starts = [], self.runner.starts(requests)
        for lane in under.lanes:
            weights = self.runner.weights([lane])
            values.append(score_plain(self.causal, requests, starts, self.runner.running(weights)))
            self.runner.tandem.check([weights])
        rows = len(under.lanes) * self.causal.depth * sum(len(request.inputs) for request in requests)
        return Result(values, Work(rows, rows))

    def write(
        self, prompts: Sequence[Prompt], under: Under, sampling: Sampling, decode: Decode
    ) -> tuple[list[list[Continuation]], Work]:
        values, work, starts = [], Work(), self.runner.starts(prompts)
        for lane in under.lanes:
            weights = self.runner.weights([lane])
            texts, took = self._write(prompts, starts, self.runner.running(weights), sampling, decode)
            self.runner.tandem.check([weights])
            values.append(texts)
            work += took
        return values, work

    def _write(
        self, prompts: Sequence[Prompt], starts: Sequence[int], running: Running, sampling: Sampling, decode: Decode
    ) -> tuple[list[Continuation], Work]:
        texts, ran = write_plain(self.causal, prompts, starts, running, sampling, decode)
        demand = sum(len(prompt.tokens) + len(text.tokens) - 1 for prompt, text in zip(prompts, texts, strict=True))
        return texts, Work(
            self.causal.depth * demand, self.causal.depth * ran, {"again": self.causal.depth * (demand - ran)}
        )

    def reference(self, requests: Sequence[Request]) -> Result:
        rows = self.causal.depth * sum(len(request.inputs) for request in requests)
        return Result([score_plain(self.causal, requests, [0] * len(requests), alone)], Work(rows, rows))

    def write_reference(
        self, prompts: Sequence[Prompt], sampling: Sampling, decode: Decode
    ) -> tuple[list[list[Continuation]], Work]:
        texts, work = self._write(prompts, [0] * len(prompts), alone, sampling, decode)
        return [texts], work

    @property
    def held(self) -> CacheStatistics:
        return CacheStatistics()


@dataclass(frozen=True, slots=True)
class InPlaceRoute(Route):
    """One lane after another, the weights in memory walking to each of them."""

    inner: Route
    inplace: InPlaceWeights

    def score(
        self, requests: Sequence[Request], under: Under, spans: Spans | None = None, observer: Observer | None = None
    ) -> Result:
        result = Result([])
        for standing in self._walk(under):
            part = self.inner.score(requests, standing)
            result.values += part.values
            result.work += part.work
        return result

    def write(
        self, prompts: Sequence[Prompt], under: Under, sampling: Sampling, decode: Decode
    ) -> tuple[list[list[Continuation]], Work]:
        values, work = list[list[Continuation]](), Work()
        for standing in self._walk(under):
            own, took = self.inner.write(prompts, standing, sampling, decode)
            values += own
            work += took
        return values, work

    def reference(self, requests: Sequence[Request]) -> Result:
        return self.inner.reference(requests)

    def write_reference(
        self, prompts: Sequence[Prompt], sampling: Sampling, decode: Decode
    ) -> tuple[list[list[Continuation]], Work]:
        return self.inner.write_reference(prompts, sampling, decode)

    @property
    def held(self) -> CacheStatistics:
        return self.inner.held

    def _walk(self, under: Under) -> Iterator[Under]:
        for lane in under.lanes:
            self.inplace.move_to(lane)
            yield Under([BASE], [lane])


def require_spans(lanes: Sequence[Lane], spans: Spans | None, own_prefixes: str | None) -> None:
    """Refuse lanes whose prefix is not their own where spans are missing, or ``own_prefixes`` says why there are no such lanes.

    Raises:
        ModelError: saying what is missing.
    """
    if spans is None and all(lane.prefix == "own" for lane in lanes):
        return
    if spans is None:
        raise ModelError(
            "a lane takes its prefix from elsewhere, but no spans say where: give both, as a plan has them"
        )
    if own_prefixes is not None:
        raise ModelError(own_prefixes)


@dataclass(frozen=True, slots=True)
class Linearised:
    """Scores to first order under ``lanes``, by forward-mode differentiation.

    Raises:
        ModelError: some lanes are no derivatives.
    """

    runner: LaneRunner
    causal: CausalModel
    lanes: Sequence[Lane]

    def __post_init__(self) -> None:
        if not all(lane.linear and lane.probe for lane in self.lanes):
            raise ModelError("linear lanes are scored on their own: score the others in another call")

    def score(self, requests: Sequence[Request]) -> Scores:
        """``[lane][request]`` scores."""
        trained, starts = self.runner.trained, self.runner.starts(requests)
        values = score_linear(
            self.causal, trained.parameters, trained.loras, self.runner.noise, requests, starts, self.lanes
        )
        rows = len(self.lanes) * self.causal.depth * sum(len(request.inputs) for request in requests)
        return Scores(values, Work(rows, rows))
