"""Plots of a profile, drawn from its result alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twinpass.report.plots import STYLE, save

COLOURS = ("#2b6cb0", "#dd6b20", "#2f855a", "#b83280", "#805ad5", "#718096", "#b7791f", "#2c7a7b")
MARKERS = "os^DvPX*"
Rows = Sequence[Mapping[str, Any]]


def draw_profile(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """``profile.png`` (hit rate and error of g against eps), ``layers.png`` and ``limits.png`` in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: Rows = result["rows"]
    names = list(dict.fromkeys((row["policy"], row["dtype"]) for row in rows))
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    drawn = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 10), layout="constrained")
        panels = figure.subplots(3, 1, sharex=True)
        several = len({dtype for _, dtype in names}) > 1
        for i, name in enumerate(names):
            own = [row for row in rows if (row["policy"], row["dtype"]) == name]
            label = f"{name[0]}, {name[1]}" if several else name[0]
            _compare(panels, own, {"color": colour[name], "marker": MARKERS[i % len(MARKERS)], "label": label})
        hits, saved, error = panels
        hits.set(ylabel="hit rate (%)", title="What is saved, and what it costs")
        saved.set(ylabel="compute saved (%)")
        saved.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        error.axhline(0.1, color="#a0aec0", linewidth=1, linestyle=":")
        error.set(xlabel="eps", ylabel="relative error of g", xscale="log", yscale="log")
        drawn.append(save(figure, folder / "profile.png"))
        if result["layers"]:
            figure = Figure(figsize=(10, 4.2), layout="constrained")
            _layers(figure.subplots(1, 2), result["layers"])
            drawn.append(save(figure, folder / "layers.png"))
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        _limits(figure.subplots(), result)
        drawn.append(save(figure, folder / "limits.png"))
    return drawn


def _compare(panels: Sequence[Axes], rows: Rows, look: Mapping[str, Any]) -> None:
    """Hit rate, compute saved, error of g: solid against exact SPSA at the same eps, dotted for exact SPSA against the reference."""
    hits, saved, error = panels
    style = {**look, "linewidth": 2, "markersize": 5, "alpha": 0.8}
    x = [row["eps"] for row in rows]
    hits.plot(x, [100 * row["hit_rate"] for row in rows], **style)
    saved.plot(x, [100 * row["compute_saved"] for row in rows], **style)
    policy = [(row["eps"], row["relative_error"]) for row in rows if row["relative_error"] > 0]
    own = [(row["eps"], row["reference_error"]) for row in rows if row["reference_error"]]
    if policy or own:
        error.plot(*zip(*(policy or own), strict=True), **{**style, "linestyle": "-" if policy else ":"})


def _layers(axes: Sequence[Axes], layers: Rows) -> None:
    drift, errors = axes
    chosen = [row for row in layers if row["dtype"] == layers[0]["dtype"]]
    shades = matplotlib.colormaps["viridis"]
    for i, row in enumerate(chosen):
        colour = shades(i / max(1, len(chosen) - 1))
        x = range(len(row["drift"]))
        drift.plot(x, row["drift"], color=colour)
        errors.plot(x, row["errors"], color=colour, label=f"eps {row['eps']:.0e}")
    drift.set(xlabel="layer", yscale="log", title="Drift of keys and values", ylabel="|KV+ - KV0| / |KV0|")
    errors.set(
        xlabel="layer", yscale="log", title="Error of their reflection", ylabel="|2 KV0 - KV+ - KV-| / |KV- - KV0|"
    )
    errors.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _limits(axes: Axes, result: Mapping[str, Any]) -> None:
    """Exact SPSA's own error against eps, and the noise floor that bounds it from below."""
    for i, (dtype, limits) in enumerate(result["limits"].items()):
        own = [row for row in result["rows"] if row["policy"] == "exact" and row["dtype"] == dtype]
        points = [(row["eps"], row["reference_error"]) for row in own if row["reference_error"]]
        label = f"{dtype}: noise of a loss {limits['loss_noise']:.1e} nats"
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[i], linewidth=2, label=label)
    axes.set(xlabel="eps", ylabel="relative error of g", xscale="log", yscale="log")
    axes.set_title(f"Exact SPSA against {result['reference']}", fontsize=11)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
