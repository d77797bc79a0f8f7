"""``twinpass train``."""

import argparse
import json
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinpass.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from twinpass.train.folder import RunFolder


def add(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "train",
        help="train as a configuration file says",
        description="Train a model with forward passes. Everything goes to the run folder (run.out); a crash loses nothing.",
    )
    command.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG", help="a TOML file, such as twinpass init prints"
    )
    command.add_argument(
        "--resume", type=Path, metavar="RUN", help="continue the run in this folder as if it had never stopped"
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override a setting, such as optimizer.lr=1e-3",
    )
    command.add_argument("--json", action="store_true", help="print the summary as JSON, and nothing else")
    command.set_defaults(run=run)


def run(args: argparse.Namespace, console: "Console") -> int:
    """Train, or continue; prints where everything lies."""
    from twinpass.config.load import load_config

    began = time.perf_counter()
    if (args.config is None) == (args.resume is None):
        raise ConfigError("command line", ["give either a CONFIG file, or --resume RUN"])
    if args.resume is not None and args.set:
        raise ConfigError(
            "command line", ["--resume continues a run as it began; --set cannot change it. Start a new run instead"]
        )
    config = load_config(args.config, args.set) if args.config else load_config(args.resume / "config.toml")
    from twinpass.config.compose import build
    from twinpass.report.progress import ProgressBar
    from twinpass.train.descent import graph_bytes
    from twinpass.train.folder import RunFolder

    folder = RunFolder(args.resume or Path(config.run.out))
    if args.config:
        folder.require_new()
    console.print(f"loading {config.model.path} and {Path(config.task.train).name} ...")
    session = build(config)
    console.print(
        f"{session.engine.trained:,} weights to train, {len(session.plan.train):,} training rows, "
        f"{len(session.plan.held_out):,} held out"
    )
    if session.plan.estimator.whole:
        console.print(
            f"the graph of a step takes up to about {graph_bytes(session.engine, session.plan) / 2**20:,.0f} MiB beside the model"
        )
    with closing(session.engine):
        if args.resume:
            journal, contents = folder.resume(config.values, session.engine)
            records = contents.records
        else:
            journal, records = folder.begin(config.values, session.engine), ()
        with ProgressBar(console) as bar:
            summary = folder.train(session.engine, session.plan, journal, records, bar)
    summary["total_seconds"] = time.perf_counter() - began
    folder.write_summary(summary)
    if args.json:
        print(json.dumps(summary))
    else:
        _print(console, folder, summary)
    return 0


def _print(console: "Console", folder: "RunFolder", summary: dict[str, Any]) -> None:
    from rich.table import Table

    name = summary["metric_name"]
    table = Table(title=None, show_header=True, header_style="bold")
    for column in ("", "before", "after"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row(f"held-out {name}", f"{summary['base_metric']:.1%}", f"{summary['final_metric']:.1%}")
    console.print(table)
    console.print(
        f"{summary['steps']} steps in {summary['train_seconds']:.0f} s of training ({summary['total_seconds']:.0f} s in all), "
        f"hit rate {summary['hit_rate']:.0%}, peak memory {summary['peak_rss_bytes'] / 2**30:.2f} GiB"
    )
    console.print(f"weights   {summary['weights']}")
    console.print(f"plots     {folder.path / 'plots'}")
    console.print(f"journal   {folder.journal}")
    console.print(f"summary   {folder.path / 'summary.json'}")
