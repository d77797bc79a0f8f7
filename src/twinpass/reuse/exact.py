"""Within a lane, every prefix that sequences share is computed once; nothing crosses lanes or steps."""

from pydantic.dataclasses import dataclass

from twinpass.reuse.base import Policy
from twinpass.settings import STRICT


@dataclass(frozen=True, config=STRICT)
class Exact(Policy):
    """Exact sharing, the default: scores are those of encoding every sequence on its own."""

    bias_order = None
