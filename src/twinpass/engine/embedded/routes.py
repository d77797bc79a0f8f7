"""How the model runs under lanes: packed, with all that lanes share, or each sequence by its own forward."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from twinpass.core import Continuation, Decode, Held, Lane, Prompt, Request, Sampling, Scores, WeightsVersion, Work
from twinpass.engine.embedded.linear.lanes import LaneWeights, Running
from twinpass.engine.embedded.linear.tandem import Tandem
from twinpass.engine.embedded.scoring.jobs import Job, Result, SharedByLanes
from twinpass.engine.embedded.scoring.ledger import Ledger
from twinpass.engine.embedded.scoring.linearised import score_linear
from twinpass.engine.embedded.scoring.observe import Observer
from twinpass.engine.embedded.scoring.passes import RunningOf
from twinpass.engine.embedded.scoring.plain import score_plain
from twinpass.engine.embedded.scoring.scorer import PackedScorer
from twinpass.engine.embedded.scoring.sharing import SharingByBlock
from twinpass.engine.embedded.scoring.writing import Order, PackedWriter
from twinpass.engine.embedded.scoring.writing_plain import write_plain
from twinpass.errors import ModelError
from twinpass.model.causal import CausalModel
from twinpass.model.trainable import Trained
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

    def starts(self, inputs: Sequence[Request] | Sequence[Prompt]) -> list[int]:
        """The first token of each that trained weights act on."""
        return [each.active_from if self.trained.activated else 0 for each in inputs]


class Route(ABC):
    """Requests and prompts under ``lanes``; the weights in memory are, together, ``versions`` of the base weights."""

    @abstractmethod
    def score(
        self,
        requests: Sequence[Request],
        lanes: Sequence[Lane],
        versions: Sequence[Lane],
        spans: Spans | None = None,
        observer: Observer | None = None,
    ) -> Result:
        """``[lane][request]`` scores."""

    @abstractmethod
    def write(
        self,
        prompts: Sequence[Prompt],
        lanes: Sequence[Lane],
        versions: Sequence[Lane],
        sampling: Sampling,
        decode: Decode,
    ) -> tuple[list[list[Continuation]], Work]:
        """``[lane][prompt]`` texts, and the work they took."""

    @property
    @abstractmethod
    def held(self) -> Held:
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
        self,
        requests: Sequence[Request],
        lanes: Sequence[Lane],
        versions: Sequence[Lane],
        spans: Spans | None = None,
        observer: Observer | None = None,
    ) -> Result:
        used: dict[tuple[Lane, ...], LaneWeights] = {}
        own = [self.ledger.lane(lane) for lane in versions]
        job = Job(requests, own, self._running_of(lanes, used), self._shared_by(versions), spans, observer=observer)
        result = self.scorer.score(job)
        self.runner.tandem.check(used.values())
        return result

    def write(
        self,
        prompts: Sequence[Prompt],
        lanes: Sequence[Lane],
        versions: Sequence[Lane],
        sampling: Sampling,
        decode: Decode,
    ) -> tuple[list[list[Continuation]], Work]:
        used: dict[tuple[Lane, ...], LaneWeights] = {}
        own = [self.ledger.lane(lane) for lane in versions]
        order = Order(prompts, own, self._running_of(lanes, used), sampling, decode, self._shared_by(versions))
        found = PackedWriter(self.scorer).write(order)
        self.runner.tandem.check(used.values())
        return found

    @property
    def held(self) -> Held:
        return self.scorer.held

    def _running_of(self, lanes: Sequence[Lane], used: dict[tuple[Lane, ...], LaneWeights]) -> RunningOf:
        """What makes the model compute some weights versions; ``used`` takes note of the lanes."""

        def running_of(which: Sequence[WeightsVersion]) -> Running:
            chosen = tuple(lanes if self.one_by_one else [version.lane for version in which])
            return self.runner.running(used.setdefault(chosen, self.runner.weights(chosen)))

        return running_of

    def _shared_by(self, lanes: Sequence[Lane]) -> SharedByLanes | None:
        blocks = {lane.probe.block for lane in lanes if lane.probe is not None}
        return self.sharing.shared_by_lanes(blocks or {None})


@dataclass(frozen=True, slots=True)
class OwnForward(Route):
    """One lane after another, each sequence by the model's own forward: for models that packing does not suit."""

    runner: LaneRunner
    causal: CausalModel

    def score(
        self,
        requests: Sequence[Request],
        lanes: Sequence[Lane],
        versions: Sequence[Lane],
        spans: Spans | None = None,
        observer: Observer | None = None,
    ) -> Result:
        values, starts = [], self.runner.starts(requests)
        for lane in lanes:
            weights = self.runner.weights([lane])
            values.append(score_plain(self.causal, requests, starts, self.runner.running(weights)))
            self.runner.tandem.check([weights])
        rows = len(lanes) * self.causal.depth * sum(len(request.inputs) for request in requests)
        return Result(values, Work(rows, rows))

    def write(
        self,
        prompts: Sequence[Prompt],
        lanes: Sequence[Lane],
        versions: Sequence[Lane],
        sampling: Sampling,
        decode: Decode,
    ) -> tuple[list[list[Continuation]], Work]:
        values, work, depth = [], Work(), self.causal.depth
        for lane in lanes:
            weights = self.runner.weights([lane])
            running = self.runner.running(weights)
            texts, ran = write_plain(self.causal, prompts, self.runner.starts(prompts), running, sampling, decode)
            self.runner.tandem.check([weights])
            values.append(texts)
            demand = sum(len(prompt.tokens) + len(text.tokens) - 1 for prompt, text in zip(prompts, texts, strict=True))
            work += Work(depth * demand, depth * ran, {"again": depth * (demand - ran)})
        return values, work

    @property
    def held(self) -> Held:
        return Held()


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
