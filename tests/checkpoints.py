"""Folders and files of weights, and what is said of those that cannot be loaded."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from twinpass.errors import ModelError
from twinpass.model.load import load

Change = Callable[[dict[str, Tensor]], None]


def refused(folder: Path, *parts: str) -> str:
    """The message, which is one line and holds ``parts``."""
    with pytest.raises(ModelError) as caught:
        load(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    for part in parts:
        assert part in message, message
    return message
