"""The contract of a way to have lanes inside SGLang."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from twinpass.core import Lane, Term
from twinpass.engine.sglang.server import Variant
from twinpass.errors import ModelError

if TYPE_CHECKING:
    from twinpass.model.space import Space


class Variants(ABC):
    """Trained weights, and their lanes as SGLang has them."""

    @property
    @abstractmethod
    def trained(self) -> int:
        """How many numbers are trained."""

    @property
    @abstractmethod
    def activated(self) -> bool:
        """Whether tokens before the activation point are the base model's."""

    @abstractmethod
    def effective_eps(self, eps: float) -> float:
        """The eps that perturbations really use when ``eps`` is asked for."""

    @abstractmethod
    def groups(self, lanes: Sequence[Lane]) -> Iterator[list[Variant]]:
        """The distinct ``lanes`` in order, in groups that can be scored together; each group is ready until the next is asked for.

        Raises:
            EngineError: SGLang cannot take them, or its weights were not what they should have been while a group was scored.
        """

    @abstractmethod
    def update(self, terms: Sequence[Term]) -> None:
        """``theta += scale * z`` for every term."""

    def use(self, space: "Space") -> None:
        """Train gains along other directions from now on.

        Raises:
            ModelError: what is trained has none.
        """
        raise ModelError("what is trained takes no directions; use trainable.kind = 'informed'")

    @abstractmethod
    def reset(self) -> None:
        """Return to ``theta_0``, to the bit."""

    @abstractmethod
    def save(self, run: Path) -> Path:
        """Write what was trained into the run folder; returns the folder written."""

    @abstractmethod
    def close(self) -> None:
        """Leave SGLang as it was."""
