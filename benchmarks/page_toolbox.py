"""The section on the tools beside SGD, from ``benchmarks/results/toolbox.json``."""

from collections.abc import Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]


def section(result: Result) -> str:
    """A table a task: what each method came to."""
    commits = sorted({run["commit"] for run in result["runs"]})
    lines = [
        "\n## Tools beside plain SGD\n",
        f"{result['machine']['processor']}, commit {', '.join(commits)} ([toolbox.json](../benchmarks/results/toolbox.json); `make bench-toolbox`). An activated adapter, {result['train_rows']} rows, "
        f"{result['held_out']} held out, {result['seconds']:g} s of steps each, the first and evaluations not counted, learning rates that do not fall, keys and values of all prompts on disk beforehand. "
        "*Best* and *last* are evaluations, the seeds' mean, lowest and highest; *a third* and *three times* are the best of the first seed at that part of the learning rate.\n",
    ]
    for task in dict.fromkeys(run["task"] for run in result["runs"]):
        own = [run for run in result["runs"] if run["task"] == task]
        lines += [
            f"### {task}, {own[0]['before']:.1%} before\n",
            "| method | lr | best | last | steps | a third | three times |",
            "|---|---|---|---|---|---|---|",
        ]
        for method in dict.fromkeys(run["method"] for run in own):
            at = {
                factor: [run for run in own if run["method"] == method and run["factor"] == factor]
                for factor in (0.333, 1.0, 3.0)
            }
            cells = [_spread(at[1.0], "best"), _spread(at[1.0], "last"), _steps(at[1.0])]
            cells += [_spread(at[factor], "best") for factor in (0.333, 3.0)]
            lines.append(f"| {method} | {at[1.0][0]['lr']:g} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _spread(runs: Sequence[Result], key: str) -> str:
    if not runs:
        return "-"
    values = [run[key] for run in runs]
    mean = f"{sum(values) / len(values):.1%}"
    spread = f"{mean} ({min(values):.1%} to {max(values):.1%})" if len(values) > 1 else mean
    lost = sum(run["diverged"] for run in runs)
    return f"{spread}, {lost} diverged" if lost else spread


def _steps(runs: Sequence[Result]) -> str:
    counts = [run["steps"] for run in runs]
    return f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(counts[0])
