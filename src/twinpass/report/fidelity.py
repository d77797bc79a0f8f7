"""How near projected gradients are to those they stand for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from twinpass.core import StepReport


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Agreement of estimates with exact ones on the same batches and probes.

    ``relative_error`` is the norm of the differences over the norm of the exact ones; ``correlation`` is Pearson's
    (None with fewer than two probes, or where one side does not vary); ``sign_agreement`` is a share.
    """

    relative_error: float
    correlation: float | None
    sign_agreement: float
    probes: int

    @classmethod
    def of(cls, estimates: Sequence[float], exact: Sequence[float]) -> Self:
        """Compare probe by probe.

        Raises:
            ValueError: there are none, or not as many of one as of the other.
        """
        if len(estimates) != len(exact) or not exact:
            raise ValueError(f"{len(estimates)} estimates cannot be compared with {len(exact)} exact ones")
        a, g = np.array(estimates), np.array(exact)
        size = float(np.linalg.norm(g))
        error = float(np.linalg.norm(a - g)) / size if size else float(np.any(a != g))
        varies = len(a) > 1 and a.std() > 0 and g.std() > 0
        correlation = float(np.corrcoef(a, g)[0, 1]) if varies else None
        return cls(error, correlation, float(np.mean(np.sign(a) == np.sign(g))), len(a))

    @classmethod
    def measured(cls, steps: Sequence[StepReport]) -> Self | None:
        """What steps measured of themselves; None if none did."""
        checked = [report.observed for report in steps if report.observed.exact]
        if not checked:
            return None
        return cls.of([a for o in checked for a in o.approximate], [g for o in checked for g in o.exact])
