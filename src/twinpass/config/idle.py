"""Settings that would change nothing beside others: refused, so that nobody believes that they act. A restated default is let through."""

from collections.abc import Iterator, Mapping
from typing import Any

from twinpass.config.engines import LANES
from twinpass.model.defaults import Defaults
from twinpass.reuse.plan import Situation
from twinpass.schedule.epsilon import ConstantEpsilon, Epsilon, JoinedEpsilon


def idle(built: Mapping[str, Any], suited: Defaults | None) -> list[str]:
    """Every such setting. ``built`` holds the sections that are valid in themselves; ``suited`` is what those follow that are left out."""
    return [*_lanes(built), *_eps(built, suited), *_target(built), *_clip(built), *_patience(built, suited)]


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
