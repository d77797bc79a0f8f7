"""The contract of a policy."""

from abc import ABC


class Policy(ABC):
    """Says which forward work may be shared. ``bias_order`` is k in a gradient error of O(eps^k); None means exact."""

    bias_order: float | None
