"""How settings are declared: frozen dataclasses that check themselves, in Python and from a configuration file."""

from typing import Annotated

from pydantic import ConfigDict, Field

STRICT = ConfigDict(extra="forbid", strict=True, validate_default=True)
"""Unknown keys and wrong types are errors; an integer may stand for a float, nothing else is converted."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[str, ...], Field(strict=False)]
"""Several strings; a TOML array becomes a tuple."""
