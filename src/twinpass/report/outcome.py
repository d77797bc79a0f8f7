"""What happened in a run, in sentences, from its summary."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twinpass.report.shown import shown

FITTED = (
    "see whether prompt, suffix and options read as one text, give more rows or steps, let [trainable] act in more layers, "
    'set [trainable] kind = "activated" with [estimator] kind = "backprop",'
)
"""What helps where directions are fitted, which have no learning rate."""


def outcome(summary: Mapping[str, Any], folder: Path) -> list[str]:
    """Whatever is not as a reader would take for granted of a run that came to its end."""
    name, steps, kept = summary["metric_name"], summary["steps"], summary["kept_step"]
    found = []
    if summary["settled"]:
        found.append(
            f"ended after {steps} of at most {summary['steps_planned']} steps: {name} no longer rose, by evaluations of {summary['held_out']:,} rows (run.patience)"
        )
    elif steps < summary["steps_planned"]:
        found.append(
            f"stopped by run.max_seconds after {steps} of {summary['steps_planned']} steps; "
            f"go on with: twinpass train --resume {shlex.quote(str(folder))}"
        )
    if rollbacks := summary["rollbacks"]:
        times = "once" if rollbacks == 1 else f"{rollbacks} times"
        found.append(
            f"rolled back {times}, to {summary['lr_scale']:.3g} of the learning rate; a lower optimizer.lr may come further"
        )
    if kept < steps:
        found.append(
            f"kept the weights of the best evaluation, after step {kept} ({name} {shown(name, summary['kept_metric'])}); "
            f"after step {steps} it was {shown(name, summary['final_metric'])}"
        )
    if summary["accepted_changes"]:
        found.append(f"went on from other ground than it began on: {', '.join(summary['accepted_changes'])}")
    if summary["learned"] is False:
        found.append(
            f"learned nothing: no evaluation is better than the one before training ({name} {shown(name, summary['base_metric'])}); "
            f"{FITTED if summary['fitted'] else 'try another optimizer.lr, more steps,'} or look at plots/gradient.png and plots/loss.png"
        )
    return found
