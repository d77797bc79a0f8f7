"""What a row becomes."""

from dataclasses import dataclass, field

from twinpass.core import Tokens


@dataclass(frozen=True, slots=True)
class Example:
    """A tokenised row: the prompt, its answers, the index of the right one, and where the suffix begins.

    ``place`` is where it came from, for messages.
    """

    prompt: Tokens
    options: tuple[Tokens, ...]
    label: int
    suffix_start: int
    place: str = field(default="", compare=False)
