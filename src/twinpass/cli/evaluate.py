"""``twinpass eval``."""

import argparse
import json
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinpass.cli.replay import restore
from twinpass.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from twinpass.config.compose import Run
    from twinpass.engine.base import Engine


def add(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "eval",
        help="score the held-out rows",
        description="Score the held-out rows: of a configuration's base model, or of a run as it stands after any step.",
    )
    command.add_argument("target", type=Path, metavar="CONFIG|RUN", help="a configuration file, or the folder of a run")
    command.add_argument("--step", type=int, metavar="N", help="a run's weights after N steps (default: the last)")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override a setting of a configuration file",
    )
    command.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
    command.set_defaults(run=run)


def run(args: argparse.Namespace, console: "Console") -> int:
    """Evaluate and print."""
    from rich.progress import Progress

    from twinpass.config.load import load_config

    session: Run[Engine]
    if args.target.is_dir():
        if args.set:
            raise ConfigError(
                "command line", ["--set changes a configuration file; a run is evaluated as it was trained"]
            )
        session, step = restore(args.target, args.step, console)
    else:
        if args.step is not None:
            raise ConfigError("command line", ["--step needs the folder of a run, not a configuration file"])
        config = load_config(args.target, args.set)
        from twinpass.config.compose import build

        session, step = build(config), 0
    from twinpass.train.evaluate import evaluate

    plan = session.plan
    with closing(session.engine), Progress(console=console, transient=True) as progress:
        bar = progress.add_task("evaluating", total=len(plan.held_out))
        result = evaluate(
            session.engine, plan.objective, plan.held_out, lambda done: progress.update(bar, completed=done)
        )
    if args.json:
        print(json.dumps({"step": step, **asdict(result)}))
    else:
        console.print(
            f"held-out {result.metric_name} at step {step}: [bold]{result.metric:.1%}[/bold]"
            f"  (loss {result.loss:.3f}, {result.examples} rows)"
        )
    return 0
