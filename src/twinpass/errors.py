"""One tree of exceptions. Each message names the place, what was expected and what to do."""

import re
from collections.abc import Sequence


class TwinpassError(Exception):
    """Anything that twinpass refuses, with a message for the person who can mend it.

    What a terminal would obey, such as the escape sequences in a file's field names, is written out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def system_error(error: Exception) -> int | None:
    """The system's number for why it refused, where that is what ``error`` says; libraries in Rust only have it in their text."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found and not isinstance(error, TwinpassError) else None


def printable(text: str) -> str:
    """``text`` with control characters (but line breaks) and lone surrogates as escapes."""
    return "".join(
        each if each == "\n" or not _is_control(ord(each)) else each.encode("unicode-escape").decode() for each in text
    )


def _is_control(code: int) -> bool:
    return code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or 0x202A <= code <= 0x202E


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


class StorageError(TwinpassError):
    """A file or folder cannot be written or read; the message says which, why, and what to do."""


class BusyError(TwinpassError):
    """Another process writes where this one wants to."""


class DivergedError(TwinpassError):
    """Training kept diverging although it was rolled back and slowed down."""


class RewardError(TwinpassError):
    """A reward function cannot be used, or did not return one number for each text."""


class EngineError(TwinpassError):
    """An inference engine outside this process failed, or did not answer what it was asked for."""


class ExtensionError(TwinpassError):
    """Another package offers a kind of something that cannot be used."""
