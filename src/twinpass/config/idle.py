"""Settings that would change nothing beside others, or next to nothing: refused, so that nobody believes that they act. A restated default is let through.

A run that began with one goes on: what it does is no longer asked.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from twinpass.config.engines import LANES
from twinpass.model.defaults import Defaults
from twinpass.reuse.plan import Situation
from twinpass.schedule.epsilon import ConstantEpsilon, Epsilon, JoinedEpsilon

SMALL, WAY = 1e-4, 0.01
"""Below the first, a share by which weights move has to have the steps that move them by the second of themselves in all. Shares of 1e-3 to 4e-3 learned, in 40 steps (docs/log.md)."""


def idle(built: Mapping[str, Any], suited: Defaults | None) -> list[str]:
    """Every such setting. ``built`` holds the sections that are valid in themselves; ``suited`` is what those follow that are left out."""
    return [
        *_lanes(built),
        *_eps(built, suited),
        *_target(built),
        *_clip(built),
        *_share(built),
        *_patience(built, suited),
    ]


def _lanes(built: Mapping[str, Any]) -> list[str]:
    estimator, engine = built.get("estimator"), built.get("engine")
    if estimator is None or engine is None or not estimator.whole:
        return []
    return [
        f"[engine] {key}: an exact gradient is taken along no direction; leave it out, or name an estimator of probes, such as 'spsa'"
        for key, usual in LANES.items()
        if getattr(engine, key) != usual
    ]


def _eps(built: Mapping[str, Any], suited: Defaults | None) -> list[str]:
    """Eps is how far weights are moved to compare losses, and what lr counts in under optimizers that are free of scale."""
    estimator, epsilon, optimizer = (built.get(name) for name in ("estimator", "epsilon", "optimizer"))
    if estimator is None or epsilon is None or not estimator.differentiates:
        return []
    name = type(estimator).__name__.lower()
    if epsilon.measures:
        return [
            f"[epsilon] kind: {name!r} takes no differences, so that there is no eps to adapt; leave the section out, "
            'or set [estimator] kind = "spsa"'
        ]
    counted = optimizer is not None and optimizer.scale_free
    if counted or suited is None or epsilon == ConstantEpsilon(value=suited.eps):
        return []
    return [
        f"[epsilon]: no effect, as {name!r} moves no weights to compare losses; leave the section out, "
        'or set [estimator] kind = "spsa", which does'
    ]


def _target(built: Mapping[str, Any]) -> list[str]:
    epsilon, policy = built.get("epsilon"), built.get("reuse")
    if epsilon is None or policy is None or policy.planner().accepted(1.0, Situation(1)) is not None:
        return []
    for each in _joined(epsilon):
        if getattr(each, "target", None) != getattr(type(each), "target", None):
            return [
                "[epsilon] target: no effect, as [reuse] policy reflects nothing that could be accepted or rejected; "
                'leave it out, or set policy = "reflected"'
            ]
    return []


def _joined(epsilon: Epsilon) -> Iterator[Epsilon]:
    """A schedule, or all that it joins."""
    if not isinstance(epsilon, JoinedEpsilon):
        yield epsilon
        return
    for each in epsilon.schedules:
        yield from _joined(each)


def _clip(built: Mapping[str, Any]) -> list[str]:
    estimator, optimizer = built.get("estimator"), built.get("optimizer")
    if estimator is None or optimizer is None or not estimator.measures_length:
        return []
    given = [
        key for key in ("clip", "clip_window") if getattr(optimizer, key, None) != getattr(type(optimizer), key, None)
    ]
    return [
        f"[optimizer] {key}: no effect, as this estimator says itself how far to go along each direction; leave it out, "
        'or set [estimator] kind = "spsa"'
        for key in given
    ]


def _share(built: Mapping[str, Any]) -> list[str]:
    """Rates for random directions are as small as this, and there they learn."""
    optimizer = built.get("optimizer")
    if optimizer is None or not optimizer.relative or optimizer.lr >= SMALL or optimizer.lr * optimizer.steps >= WAY:
        return []
    return [
        f"[optimizer] lr: it is the share of its own norm that a weight is moved by, and {optimizer.lr:g} moves it by {optimizer.lr * optimizer.steps:.2g} "
        f"at most in all {optimizer.steps:,} steps, which learns next to nothing; leave it out, or set about 2e-3 (for random directions, whose rates "
        'are as small, set [estimator] kind = "spsa")'
    ]


def _patience(built: Mapping[str, Any], suited: Defaults | None) -> list[str]:
    run, trainable = built.get("run"), built.get("trainable")
    if run is None or suited is None or trainable is None or run.eval_every:
        return []
    if run.patience in (
        0,
        suited.patience,
        trainable.defaults.patience,
    ):  # the last is what a run folder's file has, beside steps
        return []
    return [
        "[run] patience: no effect, as eval_every = 0 evaluates before and after training only; leave it out, or set eval_every"
    ]
