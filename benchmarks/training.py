"""What policies do to training: accuracy and held-out loss against token-layers and seconds; same seeds, same steps.

``python benchmarks/training.py --json FILE --plot FILE``. Reviews, adapters (LoRA) and all weights, two probes a step.
With ``--seeds``, other seeds' runs in the file stay as they are.
"""

import argparse
import itertools
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from twinpass.cli.main import main as twinpass
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json
from twinpass.report.metrics import read_metrics
from twinpass.report.plots import STYLE

CONFIG = Path(__file__).parent.parent / "examples" / "reviews-full.toml"
SEEDS = (1, 2, 3)
COMMON = ["optimizer.batch_size=8", "engine.chunk_rows=8192", "task.eval_rows=100", "estimator.probes=2"]
TRAINED = {
    "lora": [
        "trainable.kind=lora",
        "optimizer.lr=3e-3",
        "epsilon.value=1e-2",
        "optimizer.steps=24",
        "run.eval_every=0",
    ],
    "full": ["optimizer.lr=2e-6", "epsilon.value=3e-4", "optimizer.steps=12", "run.eval_every=0"],
}
METHODS = {
    "exact": ["reuse.policy=exact"],
    "transported": ["reuse.policy=transported"],
    "frozen": ["reuse.policy=frozen"],
    "debiased frozen": ["reuse.policy=debiased", 'reuse.inner={policy="frozen"}', "reuse.probability=0.125"],
    "one-sided": ["reuse.policy=exact", "estimator.kind=one_sided"],
}
"""``transported`` is reflection about carried base-lane keys and values."""

COLOURS = dict(zip(METHODS, ("#2b6cb0", "#2f855a", "#b83280", "#dd6b20", "#718096"), strict=True))


def run(trained: str, method: str, seed: int) -> dict[str, Any]:
    """Train once: accuracy, token-layers and seconds at every evaluation."""
    folder = Path(tempfile.mkdtemp())
    chosen = [*COMMON, *TRAINED[trained], *METHODS[method], f"run.seed={seed}", f"run.out={folder / 'run'}"]
    sets = [word for setting in chosen for word in ("--set", setting)]
    if twinpass(["train", str(CONFIG), *sets, "--json"]) != 0:
        raise SystemExit(f"{trained}, {method}, seed {seed} did not train")
    summary = json.loads((folder / "run" / "summary.json").read_text())
    course, seconds, layers = [], 0.0, 0
    for row in read_metrics(folder / "run" / "metrics.jsonl"):
        if row["event"] == "step":
            seconds += row["seconds"]
            layers += row["token_layers"]["computed"]
        elif row["event"] == "evaluation":
            point = {"step": row["step"], "accuracy": row["metric"], "loss": row["loss"]}
            course.append({**point, "seconds": seconds, "token_layers": layers})
    shutil.rmtree(folder)
    keys = ("hit_rate", "accepted_hit_rate", "fidelity", "reused_by_source", "rollbacks")
    named = {"trained": trained, "method": method, "seed": seed, "commit": commit(), "course": course}
    return {**named, **{key: summary[key] for key in keys}}


def mean(runs: Sequence[Mapping[str, Any]], trained: str, method: str) -> list[dict[str, float]]:
    """The seeds' mean at each evaluation."""
    chosen = [one["course"] for one in runs if (one["trained"], one["method"]) == (trained, method)]
    return [
        {key: sum(point[key] for point in points) / len(points) for key in points[0]}
        for points in zip(*chosen, strict=True)
    ]


def draw(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy and held-out loss against token-layers and against seconds; a line is the mean of seeds."""
    seeds = len({one["seed"] for one in runs})
    sides = list(
        itertools.product(
            (("accuracy", "held-out accuracy"), ("loss", "held-out loss (nats)")),
            (("token_layers", "token-layers computed"), ("seconds", "seconds of training")),
        )
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(17, 8), layout="constrained")
        for row, trained in zip(figure.subplots(2, len(sides)), TRAINED, strict=True):
            for axes, ((measure, measured), (cost, spent)) in zip(row, sides, strict=True):
                for method, colour in COLOURS.items():
                    points = mean(runs, trained, method)
                    x, y = [point[cost] for point in points], [point[measure] for point in points]
                    axes.plot(x, y, "o-", color=colour, linewidth=2, markersize=4, label=method)
                axes.locator_params(axis="x", nbins=5)
                axes.set(xlabel=spent, ylabel=measured, title=f"{trained}, {seeds} seeds")
        row[-1].legend()
        figure.savefig(path, dpi=144)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--plot", type=Path, help="where to draw accuracy against work and time")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS, help="seeds to run")
    args = parser.parse_args()
    kept = json.loads(args.json.read_text())["runs"] if args.json and args.json.exists() else []
    runs = [one for one in kept if one["seed"] not in args.seeds]
    for seed in args.seeds:
        for trained in TRAINED:
            for method in METHODS:
                runs.append(run(trained, method, seed))
                if args.json:
                    facts = {"machine": machine(), "versions": versions()}
                    write_json(args.json, {"runs": runs, **facts})
    if args.plot:
        draw(runs, args.plot)


if __name__ == "__main__":
    main()
