"""What negative numbers mean in arrays of indices, one name for each meaning."""

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

NOWHERE = -1
"""In arrays of slots: a row whose keys and values, or state, are not in the pool."""

NO_CHUNK = -1
"""In arrays of chunks: a row that no chunk of the pass computes or reads."""


def in_pool(slots: Indices) -> Indices:
    """Slots of the pool as keys of a pass, among whose keys rows are numbered from 0: slot s is -1 - s."""
    return -1 - slots


def slots_of(keys: Indices) -> Indices:
    """The slots of such keys; 0 for keys that are rows."""
    return np.where(keys < 0, -1 - keys, 0)


def before_activation(tokens: Indices) -> NDArray[np.bool_]:
    """Which tokens were marked as standing before the activation point (:func:`twinpass.engine.embedded.scoring.packing.mark`)."""
    return tokens < 0
