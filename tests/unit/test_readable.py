"""What ``help`` and editors show of the package's classes."""

import inspect
import pydoc
import re
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

import twinpass

CLASSES = [name for name in twinpass.__all__ if inspect.isclass(getattr(twinpass, name))]
SETTINGS = [name for name in CLASSES if is_dataclass(getattr(twinpass, name)) and name != "Callbacks"]


@pytest.mark.parametrize("name", CLASSES)
def test_signatures_have_plain_types(name: str) -> None:
    settings: Any = getattr(twinpass, name)
    for shown in (str(inspect.signature(settings)), str(inspect.signature(settings.__init__))):
        assert not re.search(r"pydantic|Annotated|FieldInfo|Undefined| at 0x", shown, re.IGNORECASE)


@pytest.mark.parametrize("name", SETTINGS)
def test_they_name_every_setting_with_its_default(name: str) -> None:
    settings: Any = getattr(twinpass, name)
    shown = inspect.signature(settings).parameters
    assert set(shown) == {field.name for field in fields(settings) if field.init}
    for key, field in settings.__pydantic_fields__.items():
        given = shown[key]
        assert (given.default is given.empty) == field.is_required()
        assert field.is_required() or given.default == field.get_default(call_default_factory=True)


def test_help_shows_them() -> None:
    text = pydoc.plain(pydoc.render_doc(twinpass.Lora))
    assert (
        " |  Lora(rank: int = 8, alpha: float = 16.0, targets: Union[tuple[str, ...], Literal['outputs', 'all-linear']] = ("
        in text
    )
    assert "Keep the values, which are checked." in text
