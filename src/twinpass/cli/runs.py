"""``twinpass runs``."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinpass.cli.lines import HELP, paper, say
from twinpass.errors import DataError, JournalError

if TYPE_CHECKING:
    from rich.console import Console


def add(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "runs",
        help="list runs",
        description="List the runs in a folder, and in folders below it: state, steps, held-out metric, seconds.",
    )
    command.add_argument(
        "folder", nargs="?", type=Path, default=Path("runs"), metavar="DIR", help="a folder with runs (default: runs)"
    )
    command.add_argument("--json", action="store_true", help=HELP.format("runs"))
    command.set_defaults(run=run)


def require_run(folder: Path) -> None:
    """Refuse what is no run, before whatever loads models is imported."""
    journal = folder / "journal.jsonl"
    if not journal.is_file():
        raise JournalError(
            f"{journal}: there is no journal here; give the folder of a run, as 'twinpass runs' lists them"
        )


def run(args: argparse.Namespace, console: "Console") -> int:
    """List."""
    from rich.table import Table

    from twinpass.report.runs import runs_in
    from twinpass.report.shown import shown

    if not args.folder.is_dir():
        raise DataError(f"{args.folder}: there is no such folder; give one that holds runs")
    found = runs_in(args.folder)
    if args.json:
        for entry in found:
            say(asdict(entry))
        return 0
    if not found:
        console.print(f"{args.folder} holds no runs", markup=False)
        return 0
    table = Table("run", "state", "steps", "held out", "seconds", box=None)
    for entry in found:
        metric = "" if entry.metric is None else f"{entry.metric_name} {shown(entry.metric_name or '', entry.metric)}"
        seconds = "" if entry.seconds is None else f"{entry.seconds:.0f}"
        steps = "" if entry.steps is None else f"{entry.steps} of {entry.of}" if entry.of else f"{entry.steps}"
        table.add_row(entry.run, entry.state, steps, metric, seconds)
    paper().print(table)
    return 0
