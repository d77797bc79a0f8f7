"""One tree of exceptions. Each message names the place, what was expected and what to do."""

from collections.abc import Sequence


class TwinpassError(Exception):
    """Anything that twinpass refuses, with a message for the person who can mend it."""


class ConfigError(TwinpassError):
    """A configuration that cannot be run. ``problems`` lists every fault found, not only the first."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        lines = "".join(f"\n  - {problem}" for problem in self.problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__(f"{source}: {count} in the configuration:{lines}")


class DataError(TwinpassError):
    """A data file or one of its rows is unusable; the message names file and row."""


class ModelError(TwinpassError):
    """A model or adapter cannot be loaded or used."""


class UnsupportedModuleError(ModelError):
    """A module owns a trainable parameter in a way that the tandem forward cannot perturb."""


class MissedParameterError(ModelError):
    """A selected parameter did not take part in a perturbed forward pass, so its gradient would be silently zero."""


class LatticeError(TwinpassError):
    """A value or scalar does not fit the lattice on which in-place arithmetic is exact."""


class CacheError(TwinpassError):
    """The KV cache cannot do what it was asked for."""


class CacheFullError(CacheError):
    """More tokens have to be held at once than the cache has room for."""


class StaleKVError(CacheError):
    """Keys and values computed under one weights version were about to be used under another."""


class JournalError(TwinpassError):
    """A run's journal is damaged or belongs to another run."""


class DivergedError(TwinpassError):
    """Training kept diverging although it was rolled back and slowed down."""


class EngineError(TwinpassError):
    """An inference engine outside this process failed, or did not answer what it was asked for."""
