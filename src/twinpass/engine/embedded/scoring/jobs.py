"""What a scorer is asked, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from twinpass.core import BASE, PrefixReport, Request, Score, WeightsVersion, Work
from twinpass.engine.embedded.scoring.observe import Observer
from twinpass.engine.embedded.scoring.packing import Reads, Rows
from twinpass.engine.embedded.scoring.passes import RunningOf
from twinpass.reuse.base import Sharing
from twinpass.reuse.plan import Spans


@dataclass(frozen=True, slots=True)
class SharedByLanes:
    """Prefixes that several lanes share, computed under ``version``: with the weights that the model itself holds, no lane's perturbation added."""

    sharing: Sharing
    version: WeightsVersion


@dataclass(frozen=True, slots=True)
class Job:
    """What to score: requests under ``versions``, each lane's weights, which ``running_of`` makes the model compute.

    Lanes either have something in common (``shared_by_lanes``), or take prefixes from elsewhere over ``spans``; then ``prefixes`` says how
    long each request's is, and ``returning`` how much of it all have in common. Logits of ``columns`` are all that is read, if there
    are any. An ``observer`` watches the base lane.
    """

    requests: Sequence[Request]
    versions: Sequence[WeightsVersion]
    running_of: RunningOf
    shared_by_lanes: SharedByLanes | None = None
    spans: Spans | None = None
    prefixes: Sequence[int] = ()
    returning: int = 0
    columns: Rows | None = None
    observer: Observer | None = None

    def reads(self, paths: Sequence[Rows]) -> Reads:
        """What to read of the requests, whose inputs lie on ``paths``."""
        return Reads.of(self.requests, paths, self.columns)

    @property
    def base_only(self) -> bool:
        """Whether the base lane is the only one."""
        return [version.lane for version in self.versions] == [BASE]

    def part(self, requests: slice) -> "Job":
        """The same for some of the requests."""
        return replace(self, requests=self.requests[requests], prefixes=self.prefixes[requests])

    @property
    def demand(self) -> int:
        """Rows that scoring every request under every distinct variant of the weights, on its own, would take."""
        variants = len({version.lane.exact for version in self.versions})
        return variants * sum(len(request.inputs) for request in self.requests)


@dataclass(slots=True)
class Result:
    """``values[lane][request]``, the work, and what became of prefixes."""

    values: list[list[Score]]
    work: Work = field(default_factory=Work)
    prefix: PrefixReport = field(default_factory=PrefixReport)

    def extend(self, other: "Result") -> None:
        """Take in the same lanes' scores of further requests."""
        for lane, own in zip(self.values, other.values, strict=True):
            lane.extend(own)
        self.work += other.work
        first, more = self.prefix, other.prefix
        self.prefix = PrefixReport(
            first.accepted + more.accepted,
            first.rejected + more.rejected,
            _largest(first.errors, more.errors),
            _largest(first.drift, more.drift),
            first.age if first.age is not None else more.age,
            first.carried if first.carried is not None else more.carried,
        )


def _largest(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, ...]:
    """Layer by layer, of what was measured at all."""
    return tuple(map(max, a, b)) if a and b else a or b
