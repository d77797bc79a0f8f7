"""What a public task was published as, and what becomes of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


def lines(*objects: Mapping[str, Any]) -> str:
    return "".join(json.dumps(each) + "\n" for each in objects)


Made = tuple[str, Sequence[str], int]
"""A prompt, its answers, and which is right."""


@dataclass(frozen=True)
class Excerpt:
    """Files as they were published, what becomes of their rows, and how many of all come from the first.

    ``elsewhere`` is the first row in another form: as Hugging Face datasets have it.
    """

    files: Mapping[str, str]
    made: Sequence[Made]
    train: int
    suffix: str
    elsewhere: Mapping[str, Any] = field(default_factory=dict)
