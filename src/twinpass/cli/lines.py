"""What ``--json`` means, the same in every command: JSON on standard output, a line each, and nothing else there."""

import json
from collections.abc import Mapping
from typing import Any

HELP = "print {} as JSON, a line each, and nothing else (docs/watch.md)"


def say(fields: Mapping[str, Any]) -> None:
    """Print a line, at once."""
    print(json.dumps(fields), flush=True)
