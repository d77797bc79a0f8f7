"""``twinpass demo`` and ``twinpass init``: to see it run, and to begin."""

import argparse
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinpass.cli import train
from twinpass.cli.lines import HELP

if TYPE_CHECKING:
    from rich.console import Console

DEMO = Path(__file__).parent.parent / "demo"
STARTS = {path.stem: path for path in sorted((DEMO / "start").glob("*.toml"))}
"""Configurations to begin with, by the kind of their task."""


def add(commands: Any) -> None:
    """Declare both commands."""
    demo = commands.add_parser(
        "demo",
        help="fine-tune SmolLM2-135M on movie reviews",
        description="Fine-tune SmolLM2-135M on movie reviews: the configuration and rows that come with twinpass.",
    )
    demo.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override a setting, such as optimizer.steps=100",
    )
    demo.add_argument("--verbose", action="store_true", help="a second line of figures, as in twinpass train")
    demo.add_argument("--json", action="store_true", help=HELP.format("events and the summary"))
    demo.set_defaults(run=run_demo)
    begin = commands.add_parser(
        "init",
        help="print a commented configuration to begin with",
        description="Print a commented configuration to begin with: twinpass init --task choice > my.toml",
    )
    begin.add_argument("--task", choices=list(STARTS), default="choice", help="what to learn (default: choice)")
    begin.set_defaults(run=run_init, json=False)


def run_demo(args: argparse.Namespace, console: "Console") -> int:
    """Train on the packaged rows, into a new folder of the working directory."""
    out = f"run.out=runs/demo-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
    args.config, args.resume, args.set = DEMO / "reviews.toml", None, [out, *args.set]
    args.accept_changes = False
    return train.run(args, console)


def run_init(args: argparse.Namespace, console: "Console") -> int:
    """Print the file as it is."""
    print(STARTS[args.task].read_text(encoding="utf-8"), end="")
    return 0
