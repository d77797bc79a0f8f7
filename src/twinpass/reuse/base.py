"""The contract of a policy: which keys and values may stand in for which, and what that costs in bias."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic.dataclasses import dataclass as settings

from twinpass.reuse.plan import LanePlanner
from twinpass.settings import STRICT, Bytes, Count


@dataclass(frozen=True, slots=True)
class Trains:
    """What is trained, as far as reuse depends on it.

    The model has ``layers`` decoder layers, the first that the perturbation touches is ``first`` (counted from 0),
    which ``varies`` where blocks of layers take turns; with ``activated`` adapters, tokens before the activation point
    run under the base model's weights.
    """

    layers: int
    first: int
    activated: bool = False
    varies: bool = False


@dataclass(frozen=True, slots=True)
class Sharing:
    """What all lanes of a batch share: layers below ``layers`` of ``tokens``, and under which name it is counted.

    Of the other tokens they share the layers below ``below``, whose states are kept instead of keys and values; with ``all`` tokens and
    ``below`` the same as ``layers``, states are all that is kept. ``kept`` says that all this stays in the cache for later steps, as its weights do not
    change between them.
    """

    source: str
    tokens: Literal["before_activation", "all"]
    layers: int
    kept: bool
    below: int = 0


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What is trained and how it is estimated, as far as a policy's use depends on it and a configuration says it.

    ``activated``: adapters act from the activation point on. ``upper``: lower layers stay as they are (None: that depends on the
    model). ``two_sided``: each probe's two signs are compared. ``differentiates``: nothing is perturbed. ``tandem``: all lanes
    run in one pass.
    """

    activated: bool
    upper: bool | None
    probes: int
    two_sided: bool
    differentiates: bool
    tandem: bool


@settings(frozen=True, config=STRICT, kw_only=True)
class Policy(ABC):
    """Says which forward work is shared. All have in common the size of the KV cache and its page.

    An engine is given the policy: it asks, once, what all lanes share exactly (:meth:`sharing`), and makes a cache of that size.
    A trainer is given the policy's :meth:`planner`: it asks at every step which lanes take approximations. Here none does;
    subclass :class:`Approximation` for one that lets them.

    Each declares its bias: the error of g is O(eps ** ``bias_order``), or None where there is none in expectation.
    ``approximate`` policies have one in single steps. ``caution`` is said once to whoever chooses the policy.

    Args:
        budget: bytes of keys and values that may be held; the least recently used go first.
        page_size: tokens that are held, found and evicted together.
    """

    bias_order: ClassVar[int | None] = None
    approximate: ClassVar[bool] = False
    caution: ClassVar[str] = ""

    budget: Bytes = 2**30
    page_size: Count = 1

    def __init_subclass__(cls, **more: Any) -> None:
        """Refuse a policy of an older form, of which nothing would be asked: it would share exactly, or keep nothing on disk, silently.

        Raises:
            TypeError: naming what it has, and what is asked instead.
        """
        super().__init_subclass__(**more)
        for has, instead in (
            (hasattr(cls, "plan"), "plan() is asked of what planner() returns: move it to a LanePlanner"),
            (cls.approximate and cls.planner is Policy.planner, "it is approximate: subclass Approximation"),
            (hasattr(cls, "spill") and cls.disk is Policy.disk, "what it spills is asked of its property disk"),
        ):
            if has:
                raise TypeError(f"{cls.__name__}: {instead} (docs/extending.md, A policy)")

    def objections(self, to: Circumstances) -> list[str]:
        """Why this policy could not work there, or would gain nothing, and what to do about it."""
        name, found = type(self).__name__.lower(), []
        if self.approximate and (to.activated or to.upper):
            found.append(f"{name!r} approximates what these weights let share exactly; use 'auto', which does")
        if self.approximate and not to.tandem:
            found.append(
                f"{name!r} needs all lanes in one pass; set [engine] perturbation = \"tandem\", or use 'exact'"
            )
        if self.approximate and to.differentiates:
            found.append(
                "an estimator that differentiates perturbs nothing, so that there is nothing to approximate; use 'exact'"
            )
        return found + self.own_objections(to)

    def own_objections(self, to: Circumstances) -> list[str]:
        """The part of :meth:`objections` that is this policy's alone."""
        return []

    @abstractmethod
    def sharing(self, trains: Trains) -> Sharing | None:
        """What lanes share exactly, or None.

        Raises:
            ValueError: the policy does not fit what is trained; the message says what would.
        """

    @property
    def disk(self) -> str | None:
        """The folder that what is shared is also written to, if there is one."""
        return None

    def planner(self) -> LanePlanner:
        """What a trainer plans its steps by."""
        return LanePlanner()


@settings(frozen=True, config=STRICT, kw_only=True)
class Approximation(Policy, ABC):
    """A policy under which lanes take keys and values that are not theirs, for weights that act on every token in every layer.

    It shares nothing exactly, and is refused where something could be: what is shared exactly must not be approximated.
    """

    approximate: ClassVar[bool] = True

    def sharing(self, trains: Trains) -> Sharing | None:
        name = type(self).__name__.lower()
        if trains.activated:
            raise ValueError(
                f"activated adapters are shared exactly; {name} would only add bias: use policy = 'activated'"
            )
        if trains.first or trains.varies:
            raise ValueError(
                f"lower layers that stay are shared exactly; {name} does not know them: use policy = 'invariant'"
            )
        return None

    @abstractmethod
    def planner(self) -> LanePlanner: ...
