"""Files that are either the old or the new one, never half of each."""

import json
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write through a temporary file beside ``path`` and an atomic rename."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Like :func:`write_text`, as indented JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
