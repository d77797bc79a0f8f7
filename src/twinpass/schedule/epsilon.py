"""Schedules of eps."""

from abc import ABC, abstractmethod

from pydantic.dataclasses import dataclass

from twinpass.settings import STRICT, Positive


class Epsilon(ABC):
    """The perturbation scale of each step."""

    @abstractmethod
    def at(self, step: int) -> float:
        """Eps at ``step``."""


@dataclass(frozen=True, config=STRICT)
class ConstantEpsilon(Epsilon):
    """The same eps all along."""

    value: Positive = 1e-3

    def at(self, step: int) -> float:
        return self.value
