"""What a row becomes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from twinpass.core import Tokens


@dataclass(frozen=True, slots=True)
class Anchor:
    """What the model wrote after a prompt before it was trained: tokens, and the log-probability of each (nats)."""

    prompt: Tokens
    suffix_start: int
    tokens: Tokens
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """A tokenised row: the prompt, its answers, the index of the right one, and where the suffix begins.

    ``place`` is where it came from, for messages. An ``anchor`` is what the model is held to in a batch with this row, if it is.
    """

    prompt: Tokens
    options: tuple[Tokens, ...]
    label: int
    suffix_start: int
    place: str = field(default="", compare=False)
    anchor: Anchor | None = None


@dataclass(frozen=True, slots=True)
class Asked(Example):
    """A prompt to be continued in any way: it has no options.

    ``shown`` is the prompt as a text, or as messages, and ``columns`` are what else the row says: for those who judge what was written.
    """

    options: tuple[Tokens, ...] = ()
    label: int = 0
    suffix_start: int = 0
    shown: Any = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
