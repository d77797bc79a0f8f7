"""``twinpass``: train, evaluate and replay from the command line."""

import argparse
import sys
from collections.abc import Sequence

from twinpass.cli import bench, demo, evaluate, export, predict, profile, replay, train
from twinpass.errors import DivergedError, EngineError, TwinpassError

DESCRIPTION = """\
Fine-tune language models with forward passes only (MeZO), and never compute the same forward work twice.

  twinpass demo                                 fine-tune SmolLM2-135M on movie reviews
  twinpass init --task choice > my.toml         a commented configuration to begin with
  twinpass train my.toml                        train, with a progress bar; results go to the run folder
  twinpass train --resume runs/mine             continue an interrupted run, to the same bits
  twinpass eval my.toml                         score the base model on the held-out rows
  twinpass eval runs/mine --step 100            score a run as it was after step 100
  twinpass predict runs/mine rows.jsonl         answer rows with what was trained
  twinpass generate runs/mine --prompt TEXT     let it continue a text
  twinpass export runs/mine --format peft --out DIR    write it as a folder that others load
  twinpass profile my.toml                      what each reuse policy saves, and what it costs in fidelity
  twinpass bench reviews-0shot                  time steps beside plain MeZO; any configuration will do
  twinpass bench time-to-accuracy               accuracy against seconds, beside plain MeZO and first-order LoRA
  twinpass replay runs/mine --step 100 --out DIR       rebuild the weights of any step from the journal
"""


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    root = argparse.ArgumentParser(
        "twinpass", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (demo, train, evaluate, predict, export, replay, profile, bench):
        module.add(commands)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 is success, 2 bad input, 1 a run that failed."""
    args = parser().parse_args(arguments)
    from rich.console import Console

    console = Console(stderr=True, quiet=args.json is True, highlight=False)
    try:
        code: int = args.run(args, console)
    except TwinpassError as error:
        print(f"twinpass {args.command}: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, DivergedError | EngineError) else 2
    except KeyboardInterrupt:
        print(f"\ntwinpass {args.command}: interrupted; every finished step is in the journal", file=sys.stderr)
        return 130
    return code
