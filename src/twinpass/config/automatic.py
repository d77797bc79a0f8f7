"""``"auto"`` in the section [optimizer]: what it stands for, as plain settings, which a run's own file then has."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from twinpass.estimate.base import Estimator
from twinpass.model.defaults import Defaults
from twinpass.train.automatic import AUTO, spell_steps

PATIENCE = 2
"""Evaluations without a gain that make a plateau, where nothing is said."""


def spell_out(optimizer: dict[str, Any], default: str | None, estimator: Estimator | None) -> list[str]:
    """Put what it stands for in the place of "auto"; returns what is wrong with that. ``default``: the kind where none is named.

    ``steps``: as many as evaluations gain from. ``lr``: what suits what is trained, in units that need no search; SGD along probes has none,
    and is replaced by steps of eps, normalised by the gradients' own size.
    """
    if problems := spell_steps(optimizer):
        return [f"[optimizer] {problem}" for problem in problems]
    if optimizer.get("lr") != AUTO:
        return []
    del optimizer["lr"]
    if optimizer.get("kind", default) != "sgd" or (estimator is not None and estimator.measures_length):
        return []
    if "kind" in optimizer:
        return [
            '[optimizer] lr: \'sgd\' along probes has no rate that suits every model; leave kind out beside lr = "auto", or set kind = "normalised"'
        ]
    optimizer["kind"] = "normalised"
    return [
        f'[optimizer] {key}: lr = "auto" takes steps of eps here (kind = "normalised"), which have none; leave {key} out, or give lr a number'
        for key in ("decay", "clip", "clip_window")
        if optimizer.pop(key, None) is not None
    ]


def unwatched(built: Mapping[str, Any]) -> list[str]:
    """What keeps a rate from falling that goes by evaluations."""
    optimizer, run = built.get("optimizer"), built.get("run")
    if optimizer is None or run is None or optimizer.schedule != "plateau" or (run.eval_every and run.patience):
        return []
    return [
        '[optimizer] schedule: "plateau" goes by evaluations, so that [run] eval_every and patience have to be above 0; leave them out, or set "linear"'
    ]


def watched(suited: Defaults) -> Defaults:
    """What suits a run whose learning rate goes by evaluations: there are enough of them to tell."""
    return replace(
        suited, patience=suited.patience or PATIENCE, eval_every=suited.eval_every or max(1, suited.steps // 5)
    )
