"""``twinpass train``."""

import argparse
import shlex
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinpass.cli.lines import HELP, alone, loading, say
from twinpass.cli.runs import require_run
from twinpass.errors import ConfigError
from twinpass.paths import expand

if TYPE_CHECKING:
    from rich.console import Console

    from twinpass.config.schema import Config
    from twinpass.train.folder import RunFolder

LEARNED_NOTHING = 3
"""The exit code of a run that went through, and left nothing better than what it began with."""


def add(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "train",
        help="train as a configuration file says",
        description="Train a model as a configuration file says. Everything goes to the run folder (run.out); a crash loses nothing.",
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
    command.add_argument(
        "--accept-changes",
        action="store_true",
        help="resume although data, tokenizer or code are others than the run began with; the journal will say so",
    )
    command.add_argument(
        "--verbose", action="store_true", help="a second line: projected gradient, eps, step time, hit rate, cache"
    )
    command.add_argument("--json", action="store_true", help=HELP.format("events and the summary"))
    command.set_defaults(run=run)


def run(args: argparse.Namespace, console: "Console") -> int:
    """Train, or continue; prints where everything lies."""
    from twinpass.config.load import load_config, load_run

    began = time.perf_counter()
    if (args.config is None) == (args.resume is None):
        raise ConfigError("command line", ["give either a CONFIG file, or --resume RUN"])
    if args.resume is not None and args.set:
        raise ConfigError(
            "command line", ["--resume continues a run as it began; --set cannot change it. Start a new run instead"]
        )
    if args.config and args.accept_changes:
        raise ConfigError("command line", ["--accept-changes is for --resume; a new run has nothing to differ from"])
    if args.resume is None:
        config = load_config(args.config, args.set)
        _require_there(config)
        loading(console, config.model.path, config.task.source)
    else:
        require_run(args.resume)
        loading(console, args.resume)
    from twinpass.report.trackers import unusable
    from twinpass.train.folder import RunFolder
    from twinpass.train.header import FINETUNE

    if args.resume is not None and FINETUNE in RunFolder(args.resume).settings():
        raise ConfigError(
            str(args.resume),
            ["twinpass.finetune wrote this run, whose model and rows only Python knows; go on with its resume=True"],
        )
    if args.resume is not None:
        config = load_run(args.resume)
    if problems := unusable(config.run.report_to):
        raise ConfigError(config.source, [f"[run] {problem}" for problem in problems])
    folder = RunFolder(args.resume or expand(config.run.out))
    with folder.claim(new=bool(args.config)):
        with alone(args.json):
            summary = _train(config, folder, args, console)
        summary["total_seconds"] = time.perf_counter() - began
        folder.write_summary(summary)
    if args.json:
        say({"event": "end", **summary})
    else:
        _print(console, folder, summary)
    return LEARNED_NOTHING if summary["learned"] is False else 0


def _require_there(config: "Config") -> None:
    """Refuse what cannot be found, or is there already, before whatever loads models is imported."""
    from twinpass.model.source import locate
    from twinpass.task.sources.read import require_there
    from twinpass.train.journal import require_new

    locate(config.model.path)
    train, held_out = config.task.sources()
    require_there([*train, *held_out])
    require_new(expand(config.run.out))


def _train(config: "Config", folder: "RunFolder", args: argparse.Namespace, console: "Console") -> dict[str, Any]:
    from twinpass.config.compose import build
    from twinpass.config.remember import remember
    from twinpass.report.callbacks import Callbacks
    from twinpass.report.listener import Listeners
    from twinpass.report.progress import ProgressBar
    from twinpass.report.trackers import tracking
    from twinpass.train.descent import graph_bytes
    from twinpass.train.run import carry_out

    session = build(config)
    if config.reason:
        console.print(f"[trainable] kind = {config.values['trainable']['kind']!r}: {config.reason}", markup=False)
    for note in session.notes:
        console.print(note, markup=False)
    console.print(
        f"{session.engine.trained:,} weights to train, {len(session.plan.train):,} training rows, "
        f"{len(session.plan.held_out):,} held out"
    )
    if session.plan.estimator.whole and not session.plan.estimator.fed_back:
        console.print(
            f"the graph of a step takes up to about {graph_bytes(session.engine, session.plan) / 2**20:,.0f} MiB beside the model"
        )
    with closing(session.engine), closing(session.plan.objective):
        if args.resume:
            accept = args.accept_changes
            journal, contents, accepted = folder.resume(config.values, session.engine, session.ground, accept=accept)
            records = contents.records
        else:
            journal, records = folder.begin(config.values, session.engine, session.ground), ()
            accepted = None
            remember(folder.path, session.template, session.plan.objective)
        args.resumable = folder.path
        said = [Callbacks(say, say, say)] if args.json else []
        with (
            ProgressBar(console, args.verbose) as bar,
            tracking(config.run.report_to, folder.path, config.values) as told,
        ):
            listeners = Listeners([bar, *said, *told])
            return carry_out(folder, session.engine, session.plan, journal, records, listeners, accepted)


def _print(console: "Console", folder: "RunFolder", summary: dict[str, Any]) -> None:
    from rich.table import Table

    from twinpass.report.outcome import outcome
    from twinpass.report.shown import shown
    from twinpass.report.terminal import safe

    name = summary["metric_name"]
    if summary["held_out"]:
        table = Table(title=None, show_header=True, header_style="bold")
        for column in ("", "before", "after"):
            table.add_column(column, justify="left" if not column else "right")
        table.add_row(f"held-out {name}", shown(name, summary["base_metric"]), shown(name, summary["kept_metric"]))
        console.print(table)
    else:
        console.print(
            f"no rows were held out, so that no {name} says what was learned; give more rows, or others as \\[task] eval"
        )
    console.print(
        f"{summary['steps']} {'step' if summary['steps'] == 1 else 'steps'} in {summary['train_seconds']:.0f} s of training and "
        f"{summary['evaluation_seconds']:.0f} s of evaluations; this command took {summary['total_seconds']:.0f} s"
    )
    console.print(f"hit rate {summary['hit_rate']:.0%}, peak memory {summary['peak_rss_bytes'] / 2**30:.2f} GiB")
    for sentence in outcome(summary, folder.path):
        console.print(safe(sentence))
    console.print(f"weights   {safe(summary['weights'])}")
    console.print(f"plots     {safe(folder.path / 'plots')}")
    console.print(f"journal   {safe(folder.journal)}")
    console.print(f"summary   {safe(folder.path / 'summary.json')}")
    console.print(f"use it    twinpass predict {safe(shlex.quote(str(folder.path)))} ROWS")
