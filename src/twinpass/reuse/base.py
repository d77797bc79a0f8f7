"""The contract of a policy: which keys and values may stand in for which, and what that costs in bias."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from pydantic.dataclasses import dataclass as settings

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

    ``kept`` says that it stays in the cache for later steps, as its weights do not change between them.
    """

    source: str
    tokens: Literal["before_activation", "all"]
    layers: int
    kept: bool


@settings(frozen=True, config=STRICT, kw_only=True)
class Policy(ABC):
    """Says which forward work is shared. All have in common the size of the KV cache and its page.

    Args:
        budget: bytes of keys and values that may be held; the least recently used go first.
        page_size: tokens that are held, found and evicted together.
    """

    budget: Bytes = 2**30
    page_size: Count = 1

    @abstractmethod
    def sharing(self, trains: Trains) -> Sharing | None:
        """What lanes share, or None.

        Raises:
            ValueError: the policy does not fit what is trained; the message says what would.
        """
