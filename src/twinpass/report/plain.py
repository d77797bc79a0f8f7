"""Any value as JSON, for others' rows and what others' functions log."""

import json
import math
from base64 import b64encode
from collections.abc import Mapping
from typing import Any


def dumped(value: Any, *, ensure_ascii: bool = True, indent: int | None = None) -> str:
    """JSON of any value, which every reader takes (:func:`plain`)."""
    return json.dumps(plain(value), ensure_ascii=ensure_ascii, indent=indent, allow_nan=False)


def plain(value: Any) -> Any:
    """What JSON has a form for.

    Arrays and tensors are lists, and their scalars numbers; NaN and infinity are null; bytes are the text that they are in UTF-8, or base64
    where they are none; anything else, such as a date, is what ``str`` makes of it.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return _text(bytes(value))
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return b64encode(value).decode()
