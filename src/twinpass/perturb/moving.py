"""The contract of weights that stand at one lane at a time."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from twinpass.core import Lane, Term


class MovingWeights(ABC):
    """Weights that a model computes with, brought from lane to lane."""

    @abstractmethod
    def move_to(self, lane: Lane) -> None:
        """Bring the weights to ``theta + lane.scale * z`` with all updates applied."""

    @abstractmethod
    def update(self, terms: Sequence[Term]) -> None:
        """``theta += scale * z`` for every term; the weights follow with the next move."""
