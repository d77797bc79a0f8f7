"""Plots of a run, drawn from its metrics alone."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twinpass.report.files import written
from twinpass.report.interval import wilson

Rows = Sequence[Mapping[str, Any]]

BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#718096"
STYLE: Any = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e2e8f0",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def draw_run(rows: Rows, metric_name: str, folder: Path) -> list[Path]:
    """``loss.png``, ``<metric>.png`` and ``gradient.png`` in ``folder``; those without data are left out, and so is a loss that is a reward."""
    folder.mkdir(parents=True, exist_ok=True)
    steps, left = in_force(rows, "step")
    evaluations, _ = in_force(rows, "evaluation")
    drawn = []
    rewarded = bool(steps) and "reward" in steps[0]
    if steps and not rewarded:
        drawn.append(_save(folder / "loss.png", lambda axes: draw_loss(axes, steps, left)))
    if steps:
        drawn.append(
            _save(folder / "gradient.png", lambda axes: (_norm if "norm" in steps[0] else _gradient)(axes, steps))
        )
    if rewarded:
        drawn.append(_save(folder / f"{metric_name}.png", lambda axes: _reward(axes, steps, evaluations)))
    elif evaluations:
        drawn.append(_save(folder / f"{metric_name}.png", lambda axes: _metric(axes, evaluations, metric_name)))
    return drawn


def save(figure: Figure, path: Path) -> Path:
    """Write an image, whole or not at all; of the kind that its name says.

    Raises:
        StorageError: it cannot be written.
    """
    kind = path.suffix.removeprefix(".") or "png"
    written(path, lambda part: figure.savefig(part, dpi=144, format=kind))
    return path


def _save(path: Path, draw: Any) -> Path:
    with axes_of(path) as axes:
        draw(axes)
    return path


@contextmanager
def axes_of(path: Path) -> Iterator[Axes]:
    """Axes in the house style, saved to ``path`` at the end of the block."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        yield figure.subplots()
        save(figure, path)


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean over the last ``window`` values (fewer at the start)."""
    return [float(np.mean(values[max(0, i + 1 - window) : i + 1])) for i in range(len(values))]


def in_force(rows: Rows, event: str) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The steps (or evaluations) that led to where the run stands, and those that rollbacks undid."""
    kept: list[Mapping[str, Any]] = []
    left: list[Mapping[str, Any]] = []
    for row in rows:
        if row["event"] == event:
            kept.append(row)
        elif row["event"] == "rollback":
            beyond = row["to"] if event == "step" else row["to"] + 1
            left += [old for old in kept if old["step"] >= beyond]
            kept = [old for old in kept if old["step"] < beyond]
    return kept, left


def draw_loss(axes: Axes, steps: Rows, left: Rows) -> None:
    """Loss over the steps in force, smoothed; those that were rolled back are grey, as far as they are in the picture."""
    x, y = [row["step"] + 1 for row in steps], [row["loss"] for row in steps]
    window = max(2, min(20, len(y) // 4))
    if left:
        axes.plot(
            [row["step"] + 1 for row in left],
            [row["loss"] for row in left],
            "x",
            color=GREY,
            markersize=4,
            label="rolled back",
        )
    axes.plot(x, y, ".", color=BLUE, alpha=0.25, markersize=5, label="a step")
    axes.plot(x, smooth(y, window), color=BLUE, linewidth=2, label=f"mean of {window} steps")
    margin = 0.05 * (max(y) - min(y)) or 0.05
    axes.set_ylim(min(y) - margin, max(y) + margin)
    axes.set(xlabel="step", ylabel="training loss (nats)", title="Loss, mean of both signs")
    axes.legend()


def _gradient(axes: Axes, steps: Rows) -> None:
    x = [row["step"] + 1 for row in steps for _ in row["gradients"]]
    raw = np.array([g for row in steps for g in row["gradients"]])
    used = np.array([g for row in steps for g in row["clipped"]])
    axes.plot(x, used, ".", color=BLUE, markersize=5, label="used")
    cut = raw != used
    if cut.any():
        axes.plot(np.array(x)[cut], raw[cut], "x", color=ORANGE, markersize=6, label=f"measured ({cut.sum()})")
    axes.axhline(0, color=GREY, linewidth=1)
    axes.set(xlabel="step", ylabel="g = (L$_+$ - L$_-$) / (2 eps)", title="Projected gradient")
    axes.legend()


def _norm(axes: Axes, steps: Rows) -> None:
    axes.plot([row["step"] + 1 for row in steps], [row["norm"] for row in steps], ".", color=BLUE, markersize=5)
    axes.set(xlabel="step", ylabel="norm before clipping", title="Gradient")


def _reward(axes: Axes, steps: Rows, evaluations: Rows) -> None:
    """Mean reward of each step's lanes, and of held-out prompts."""
    known = [row for row in steps if "reward" in row]
    x, y = [row["step"] + 1 for row in known], [row["reward"] for row in known]
    axes.plot(x, y, ".", color=BLUE, alpha=0.25, markersize=5, label="a step, all lanes")
    window = max(2, min(20, len(y) // 4))
    axes.plot(x, smooth(y, window), color=BLUE, linewidth=2, label=f"mean of {window} steps")
    if evaluations:
        held_out = [row["metric"] for row in evaluations]
        axes.plot([row["step"] for row in evaluations], held_out, "o-", color=ORANGE, label="held-out prompts")
    axes.set(xlabel="step", ylabel="mean reward", title="Reward")
    axes.legend()


def _metric(axes: Axes, evaluations: Rows, metric_name: str) -> None:
    x, y = [row["step"] for row in evaluations], [100 * row["metric"] for row in evaluations]
    if metric_name == "accuracy":
        bounds = [wilson(row["metric"], row["examples"]) for row in evaluations]
        low, high = ([100 * pair[i] for pair in bounds] for i in (0, 1))
        axes.fill_between(x, low, high, color=BLUE, alpha=0.15, linewidth=0, label="95% interval")
        axes.legend(loc="lower right")
    axes.plot(x, y, "o-", color=BLUE, linewidth=2)
    for point, place in ((0, "bottom"), (len(x) - 1, "bottom")):
        axes.annotate(
            f"{y[point]:.1f}%", (x[point], y[point]), textcoords="offset points", xytext=(0, 7), ha="center", va=place
        )
    axes.margins(y=0.15)
    axes.set(xlabel="step", ylabel=f"held-out {metric_name} (%)", title=f"Held-out {metric_name}")
