"""How sure a share is."""

import math


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The interval that holds the true share with 95% confidence, after ``count`` trials (Wilson 1927)."""
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return (middle - spread) / (1 + z * z / count), (middle + spread) / (1 + z * z / count)
