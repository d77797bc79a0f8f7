"""The section on public tasks, from ``benchmarks/results/tasks.json``."""

from collections.abc import Mapping, Sequence, Set
from typing import Any

Result = Mapping[str, Any]
KINDS = {
    "default": ("quarter", "twice", "80 steps", "attention", "all linear"),
    "informed": (),
    "lora": ("lora, ",),
    "full": ("full, ",),
}
"""What a kind's ways begin with, beside its default."""


def section(result: Result) -> str:
    """A table a kind of weights: every task by default, and by the best of other settings."""
    runs = [run for task in result["tasks"].values() for own in task["runs"].values() for run in own]
    commits = sorted({run["commit"] for run in runs})
    lines = [
        "\n## Public tasks\n",
        f"{result['machine']['processor']}, {result['model']}, commit {', '.join(commits)} ([tasks.json](../benchmarks/results/tasks.json); `make bench-tasks`). Nothing is set but the task's name, numbers of rows and what a heading says. "
        "*Default* is the best evaluation of each seed, chosen on the rows that it is reported on; *best of others* is the same of the best of other settings, which brackets name, in the mean of the seeds that it and the default both have. "
        "*Share* is the default's accuracy there divided by that, or, for texts, whose figures are nats a token, the nats by which the default is better. Seconds are those of training, first seed, beside whatever else ran.\n",
    ]
    for kind, begins in KINDS.items():
        rows = [line for name, task in result["tasks"].items() if (line := _line(name, task, kind, begins))]
        if rows:
            lines += [
                f"### {kind}\n" if kind != "default" else "### By default\n",
                "| task | rows, held out | before | default | best of others | share | seconds |",
                "|---|---|---|---|---|---|---|",
                *rows,
                "",
            ]
    return "\n".join(lines)


def _line(name: str, task: Result, kind: str, begins: Sequence[str]) -> str:
    ran = task["runs"].get(kind, ())
    own = [run for run in ran if "exit_code" not in run]
    if not own:
        return f"| {name} | - | - | failed: exit code {ran[0]['exit_code']} | - | - | - |" if ran else ""
    others = {
        way: [run for run in runs if "exit_code" not in run]
        for way, runs in task["runs"].items()
        if any(way.startswith(each) for each in begins)
    }
    seeds = {way: {run["seed"] for run in runs} & {run["seed"] for run in own} for way, runs in others.items()}
    best = {way: _mean(runs, seeds[way]) for way, runs in others.items() if seeds[way]}
    rows = f"{task['task'].get('train_rows', 'all')}, {own[0]['held_out']}"
    before = own[0]["course"][0]["loss"] if _nats(own[0]) else own[0]["base_metric"]
    found = ", ".join(_shown(own[0], _best(run)) for run in own)
    other = share = "-"
    if best:
        chosen = (min if _nats(own[0]) else max)(best, key=lambda way: best[way])
        ours = _mean(own, seeds[chosen])
        of = "" if len(own) == 1 else f", {len(seeds[chosen])} of {len(own)} seeds"
        other = f"{_shown(own[0], best[chosen])} ({chosen}{of})"
        share = f"{best[chosen] - ours:+.3f}" if _nats(own[0]) else f"{ours / best[chosen]:.2f}"
    return (
        f"| {name} | {rows} | {_shown(own[0], before)} | {found} | {other} | {share} | {own[0]['train_seconds']:.0f} |"
    )


def _nats(run: Result) -> bool:
    return bool(run["metric_name"] != "accuracy")


def _best(run: Result) -> float:
    """The best evaluation: an accuracy, or nats."""
    if _nats(run):
        return float(min(point["loss"] for point in run["course"]))
    return float(max(point["metric"] for point in run["course"]))


def _mean(runs: Sequence[Result], seeds: Set[int]) -> float:
    """Over runs of these seeds."""
    found = [_best(run) for run in runs if run["seed"] in seeds]
    return sum(found) / len(found)


def _shown(run: Result, value: float) -> str:
    return f"{value:.3f}" if _nats(run) else f"{value:.1%}"
