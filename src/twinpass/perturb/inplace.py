"""In-place mode: the weights themselves walk from lane to lane, two passes a step, and come back exactly.

The paper's Algorithm 1 rewrites the weights four times a step (+eps, -2 eps, +eps, -lr g). Here a move is lazy:
an update waits until the next lane is asked for, and restore, update and next perturbation become one pass.
"""

from collections.abc import Sequence

from twinpass.core import BASE, Lane, Probe, Term
from twinpass.perturb.lattice import Lattice, LatticeTerm
from twinpass.perturb.moving import MovingWeights


class InPlaceWeights(MovingWeights):
    """Weights that stand at one lane at a time.

    Args:
        lattice: the parameters, on the grid on which additions are exact.
    """

    def __init__(self, lattice: Lattice) -> None:
        self._lattice = lattice
        self._at = BASE
        self._pending: list[tuple[Term, int]] = []
        self.passes = 0

    def move_to(self, lane: Lane) -> None:
        """Bring the weights to ``theta + lane.scale * z`` with all updates applied, in at most one pass.

        Raises:
            LatticeError: a weight would leave the lattice's range. The weights, and the updates that wait, are as before.
        """
        shift: dict[Probe, float] = {}
        if self._at.probe is not None:
            shift[self._at.probe] = -self._at.scale
        if lane.probe is not None:
            shift[lane.probe] = shift.get(lane.probe, 0.0) + lane.scale
        terms = [
            LatticeTerm(term.probe, shift.pop(term.probe, 0.0), term.scale, times) for term, times in self._pending
        ]
        terms += [LatticeTerm(probe, perturbation) for probe, perturbation in shift.items() if perturbation]
        if terms:
            self._lattice.add(terms)
            self.passes += 1
        self._at, self._pending = lane, []

    def update(self, terms: Sequence[Term]) -> None:
        """Queue ``theta += scale * z`` for every term; it is applied with the next move."""
        self._pending += [(term, 1) for term in terms]

    def undo(self, terms: Sequence[Term]) -> None:
        """Queue the exact inverse of an update made earlier, in any order."""
        self._pending += [(term, -1) for term in terms]

    def settle(self) -> None:
        """Return to the base lane with every update applied."""
        self.move_to(BASE)
