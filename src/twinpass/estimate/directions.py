"""Directions that forward passes tell: the head's exact error regressed on what enters each module.

A module that writes into the residual stream with input x changes the state that leaves the last layer by about what it writes
(feedback along the residual stream, in the place of a Jacobian: Nøkland 2016, arXiv 1609.01596). The best linear map from x to
minus the error is then a direction that lowers the loss; ridge regression keeps it from learning the rows by heart.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from twinpass.model.space import Observed, Space

UNIT = 0.1
"""A gain of 1 moves the residual stream by this much of the states' norm."""

ENERGY = 0.99
"""Share of the errors' square that the directions of a space have to span."""


RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Penalties to choose from."""

MOST = 1024
"""Tokens that are regressed on, evenly spaced among all: texts have many, and the work grows with their cube."""

SAMPLED = 4
"""So many modules decide on the penalty of all."""


def fit(observed: Observed, outputs: Tensor | None, *, rank: int, ridge: float | None = None) -> Space:
    """A direction for every module that was observed.

    Args:
        observed: N tokens that answers are read from.
        outputs: the directions [r, size] in which the residual stream is moved; None: as many of the errors' leading singular
            directions as span :data:`ENERGY` of them, at most ``rank``.
        ridge: the regression's penalty, in units of an input's mean square distance from the mean; None: the one of
            :data:`RIDGES` whose predictions of left-out tokens are best.
    """
    count = len(observed.errors)
    chosen = torch.linspace(0, count - 1, min(count, MOST), dtype=torch.float64).round().long()
    errors = observed.errors[chosen].double()
    inputs = {path: x[chosen] for path, x in observed.inputs.items()}
    if outputs is None:
        outputs = _leading(errors, rank).to(observed.errors)
    own = {path: observed.normed[path][chosen].double() if path in observed.normed else errors for path in inputs}
    wanted = {path: -error @ outputs.double().t() for path, error in own.items()}
    if ridge is None:
        ridge = _best_ridge([(x, wanted[path]) for path, x in inputs.items()])
    sizes = {path: observed.scale / observed.added.get(path, 1.0) for path in inputs}
    return Space(outputs, {path: _direction(x, wanted[path], sizes[path], ridge) for path, x in inputs.items()})


def _leading(errors: Tensor, rank: int) -> Tensor:
    """Orthonormal rows; the sign of each is chosen so that its largest entry is positive."""
    values, vectors = torch.linalg.eigh(errors.t() @ errors)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    share = torch.cumsum(values, 0) / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    count = min(rank, int((share < ENERGY).sum()) + 1)
    chosen = vectors[:, :count].t()
    largest = chosen.gather(1, chosen.abs().argmax(1, keepdim=True))
    signed: Tensor = chosen * largest.sign()
    return signed


def _best_ridge(modules: Sequence[tuple[Tensor, Tensor]]) -> float:
    """By leave-one-out: with K the Gram matrix and R = (K + ridge)^-1, token i is off by ``(R y)_i / R_ii`` when it is left out."""
    found = torch.zeros(len(RIDGES), dtype=torch.float64)
    for x, wanted in modules[:: max(1, len(modules) // SAMPLED)]:
        target = wanted - wanted.mean(0)
        centred = x - x.mean(0)
        gram = (centred @ centred.t()).double()
        level = _level(x, gram)
        values, vectors = torch.linalg.eigh(gram)
        turned = vectors.t() @ target
        for i, ridge in enumerate(RIDGES):
            inverse = 1 / (values.clamp_min(0) + ridge * level)
            off = (vectors @ (inverse[:, None] * turned)) / (vectors.square() @ inverse)[:, None]
            found[i] += float(off.square().sum())
    return RIDGES[int(found.argmin())]


def _level(x: Tensor, gram: Tensor) -> Tensor:
    """An input's mean square distance from the mean, but no less than rounding makes of it where all inputs are alike."""
    rounding = 1e-6 * x.double().square().sum(1).mean()
    return torch.maximum(gram.diagonal().mean(), rounding).clamp_min(1e-30)


def _direction(x: Tensor, wanted: Tensor, scale: float, ridge: float) -> Tensor:
    """``[r, in]``: ridge regression of ``wanted`` [N, r] on ``x`` [N, in], solved in the space of the N rows.

    Inputs and targets are taken from their means. A map without a bias cannot; what it gives at the mean input is set
    right along that input, so that the mean input moves by the mean target.
    """
    mean, target = x.mean(0), wanted.mean(0)
    centred = x - mean
    gram = (centred @ centred.t()).double()
    gram.diagonal().add_(ridge * _level(x, gram))
    weights = torch.linalg.solve(gram, wanted - target)
    found = weights.t().to(x) @ centred
    found += torch.outer(target.to(x) - found @ mean, mean) / mean.square().sum().clamp_min(torch.finfo(x.dtype).tiny)
    size = (x @ found.t()).square().sum(1).mean().sqrt()
    direction: Tensor = found * (UNIT * scale / size.clamp_min(torch.finfo(x.dtype).tiny))
    return direction
