"""The demo, or another task, on several seeds, with accuracy and its interval at every evaluation: ``python benchmarks/demo.py --json FILE``.

``--config FILE`` takes another configuration, with its defaults; ``--set`` changes some, as in ``twinpass train``. Data files are named in the result by their hashes.
"""

import argparse
import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twinpass.cli.main import main as twinpass
from twinpass.config.load import load_config
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json
from twinpass.report.interval import wilson
from twinpass.report.metrics import read_metrics
from twinpass.report.plots import axes_of

CONFIG = Path(__file__).parent.parent / "examples" / "reviews.toml"
SEEDS = (1, 2, 3)


def run(config: Path, seed: int, folder: Path, sets: Sequence[str] = ()) -> dict[str, Any]:
    """Train once; what was measured. A setting is ``SECTION.KEY=VALUE``."""
    said = [part for each in (*sets, f"run.out={folder}", f"run.seed={seed}") for part in ("--set", each)]
    if twinpass(["train", str(config), *said, "--json"]) != 0:
        raise SystemExit(f"seed {seed} did not train")
    summary = json.loads((folder / "summary.json").read_text())
    course, seconds = [], 0.0
    for row in read_metrics(folder / "metrics.jsonl"):
        if row["event"] == "step":
            seconds += row["seconds"]
        elif row["event"] == "evaluation":
            low, high = wilson(row["metric"], summary["held_out"])
            course.append(
                {"step": row["step"], "train_seconds": seconds, "accuracy": row["metric"], "low": low, "high": high}
            )
    keys = (
        "base_metric",
        "final_metric",
        "kept_metric",
        "kept_step",
        "train_seconds",
        "total_seconds",
        "hit_rate",
        "reused_by_source",
    )
    more = ("token_layers", "kv_bytes", "peak_rss_bytes", "steps", "rollbacks", "held_out")
    return {"seed": seed, "course": course, **{key: summary[key] for key in (*keys, *more)}}


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy against seconds of training."""
    with axes_of(path) as axes:
        for run, color in zip(runs, ("#2b6cb0", "#dd6b20", "#2f855a"), strict=True):
            x = [point["train_seconds"] for point in run["course"]]
            low, high, y = ([100 * point[key] for point in run["course"]] for key in ("low", "high", "accuracy"))
            axes.fill_between(x, low, high, color=color, alpha=0.1, linewidth=0)
            axes.plot(
                x,
                y,
                "o-",
                color=color,
                linewidth=2,
                label=f"seed {run['seed']}: {y[0]:.1f}% to {100 * run['kept_metric']:.1f}%",
            )
        axes.set(xlabel="seconds of training, prompts' keys and values included", ylabel="held-out accuracy (%)")
        axes.set_title("Movie reviews, SmolLM2-135M, defaults untouched, 2 CPU cores (95% intervals)", fontsize=11)
        axes.legend(loc="lower right")


def described(path: Path, sets: Sequence[str] = ()) -> dict[str, Any]:
    """A configuration, with its data files by name and SHA-256."""
    values = {section: dict(keys) for section, keys in load_config(path, sets).values.items() if section != "run"}
    task = values["task"]
    task.update({key: _named(task[key]) for key in ("train", "eval", "path") if key in task})
    return values


def _named(source: str | list[str]) -> Any:
    """A file by its name and SHA-256, a folder by those of its files; what is no file by its name."""
    if isinstance(source, list):
        return [_named(each) for each in source]
    path = Path(source)
    if path.is_dir():
        return [_named(str(file)) for file in sorted(path.iterdir()) if file.is_file()]
    return {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} if path.is_file() else source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=CONFIG, help="what to train, if not the demo")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="what is set in it")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--plot", type=Path, help="where to draw accuracy against seconds of training")
    args = parser.parse_args()
    config, runs = described(args.config, args.set), []
    for seed in SEEDS:
        folder = Path(tempfile.mkdtemp())
        runs.append(run(args.config, seed, folder / "run", args.set))
        shutil.rmtree(folder)
    if args.json:
        write_json(
            args.json,
            {
                "runs": runs,
                "config": config,
                "set": args.set,
                "commit": commit(),
                "machine": machine(),
                "versions": versions(),
            },
        )
    if args.plot:
        draw(runs, args.plot)


if __name__ == "__main__":
    main()
