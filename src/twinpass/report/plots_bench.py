"""Plots of benchmarks, drawn from their results alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from twinpass.report.plots import STYLE, save

COLOURS = {
    "twinpass": "#2b6cb0",
    "naive": "#718096",
    "first-order": "#dd6b20",
    "first-order-bfloat16": "#b83280",
    "lean": "#1a202c",
    "backprop": "#2f855a",
    "feedback": "#38b2ac",
    "informed": "#63b3ed",
    "linear-probe": "#805ad5",
}
PHASES = ("#2b6cb0", "#63b3ed", "#2f855a", "#dd6b20", "#b83280", "#805ad5", "#cbd5e0")
MIB = 2**20


def draw_race(result: Mapping[str, Any], path: Path) -> None:
    """Accuracy against seconds of training, with its interval, or nats; and peak memory."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        course, memory = figure.subplots(1, 2, width_ratios=(2, 1))
        for name, method in result["methods"].items():
            points = method["course"]
            x = [point["seconds"] for point in points]
            y = [point["nats"] if "nats" in point else 100 * point["accuracy"] for point in points]
            course.plot(x, y, "o-", color=COLOURS[name], label=name, markersize=4)
            if "nats" in points[0]:
                continue
            low, high = ([100 * point[key] for point in points] for key in ("low", "high"))
            course.fill_between(x, low, high, color=COLOURS[name], alpha=0.12, linewidth=0)
        nats = any("nats" in point for method in result["methods"].values() for point in method["course"])
        course.axhline(result["target"] * (1 if nats else 100), color="#a0aec0", linewidth=1, linestyle=":")
        what = (
            ("held-out loss (nats)", "Loss against time")
            if nats
            else ("held-out accuracy (%)", "Accuracy against time")
        )
        course.set(xlabel="seconds of training", ylabel=what[0], title=what[1])
        course.legend(loc="upper right" if nats else "lower right")
        names = [name for name, method in result["methods"].items() if method["peak_rss_bytes"] is not None]
        sizes = [result["methods"][name]["peak_rss_bytes"] / MIB for name in names]
        memory.bar(names, sizes, color=[COLOURS[name] for name in names])
        if result["inference_peak_rss_bytes"] is not None:
            memory.axhline(result["inference_peak_rss_bytes"] / MIB, color="#1a202c", linewidth=1, linestyle=":")
        memory.set(ylabel="peak memory (MiB)", title="Dotted: inference")
        memory.tick_params(axis="x", labelrotation=45 if len(names) > 4 else 0)
        save(figure, path)


def draw_step(result: Mapping[str, Any], path: Path) -> None:
    """Seconds a step of plain MeZO, of twinpass by phase, and of the bare products."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 2.8), layout="constrained")
        axes = figure.subplots()
        axes.barh(["plain MeZO"], [result["naive_step_seconds"]], color=COLOURS["naive"])
        left = 0.0
        for (name, share), colour in zip(result["phases"].items(), PHASES, strict=True):
            width = share * result["step_seconds"]
            axes.barh(["twinpass"], [width], left=left, color=colour, label=name)
            left += width
        axes.barh(["products alone"], [result["gemm_seconds"]], color="#1a202c")
        axes.invert_yaxis()
        title = f"{result['workload']}, {dtype_of(result)}: {result['ratio']:.1f} times as fast"
        axes.set(xlabel="seconds a step", title=title)
        axes.legend(ncols=4, fontsize=8)
        save(figure, path)


def dtype_of(result: Mapping[str, Any]) -> str:
    """The dtype of weights, and of products where it is another."""
    lower = result.get("compute_dtype")
    return f"{result['dtype']}" if lower is None else f"{result['dtype']}, products {lower}"
