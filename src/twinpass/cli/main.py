"""``twinpass``: train, evaluate and replay from the command line."""

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any, NoReturn

from twinpass.cli import bench, demo, doctor, evaluate, export, predict, profile, replay, runs, train
from twinpass.cli.lines import last_words, say
from twinpass.cli.signals import Ended, ending_like_interrupt
from twinpass.errors import DivergedError, EngineError, StorageError, TwinpassError

DESCRIPTION = """\
Fine-tune language models, by forward passes only (MeZO) or the gradient of the
answer's tokens, and never compute the same forward work twice.

  twinpass demo                           SmolLM2-135M learns movie reviews
  twinpass doctor MODEL                   what trains, how fast, in what memory
  twinpass init --task choice > my.toml   a commented configuration
  twinpass train my.toml                  train; all goes to the run folder
  twinpass train --resume runs/mine       continue an interrupted run
  twinpass runs                           list runs
  twinpass eval my.toml                   score the base model
  twinpass eval runs/mine                 score what was trained
  twinpass predict runs/mine rows.jsonl   answer rows
  twinpass generate runs/mine --prompt "Once"   continue a text
  twinpass export runs/mine --format peft --out DIR   hand it on
  twinpass replay runs/mine --step 100    rebuild the weights of any step
  twinpass profile my.toml                what reuse saves, and what it costs
  twinpass bench time-to-accuracy         race plain MeZO and first-order LoRA

twinpass COMMAND --help has a command's options.
"""


class _UsageError(Exception):
    """A command line that does not parse, and the part of the grammar that it does not follow."""

    def __init__(self, grammar: argparse.ArgumentParser, message: str) -> None:
        super().__init__(message)
        self.grammar = grammar


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(self, message)


class _Version(argparse.Action):
    """Looks the version up when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, **more: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **more)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import twinpass

        print(f"twinpass {twinpass.__version__}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    root = _Parser("twinpass", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    root.add_argument("--version", action=_Version, help="show the version and exit")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (demo, doctor, train, runs, evaluate, predict, export, replay, profile, bench):
        module.add(commands)
    return root


LEFT = {
    "train": "; every finished step is in the journal",
    "predict": "; rows that were answered are in the file of --out, from which the same command goes on",
}
"""What an interrupted command leaves behind."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 is success, 2 bad input, 1 a run that failed, 3 one that learned nothing, 128 + n one that signal n ended."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # where a locale has no such letter, as standard error does
    try:
        args = parser().parse_args(arguments)
    except _UsageError as error:
        with last_words(sys.stdout):
            if "--json" in (sys.argv[1:] if arguments is None else arguments):
                say({"event": "error", "error": str(error)})
        with last_words(sys.stderr):
            error.grammar.print_usage(sys.stderr)
            print(f"{error.grammar.prog}: error: {error}", file=sys.stderr, flush=True)
        return 2
    from rich.console import Console

    console = Console(stderr=True, quiet=args.json, highlight=False)
    try:
        with ending_like_interrupt():
            code: int = args.run(args, console)
    except (TwinpassError, OSError, MemoryError) as error:
        failed = isinstance(error, DivergedError | EngineError | StorageError | OSError | MemoryError)
        _say(args, f"error: {_message(error)}", isinstance(error, EngineError | StorageError | OSError | MemoryError))
        return 1 if failed else 2
    except KeyboardInterrupt as error:
        _say(args, f"interrupted{LEFT.get(args.command, '')}", True)
        return 128 + (error.signal if isinstance(error, Ended) else signal.SIGINT)
    return code


def _message(error: Exception) -> str:
    if isinstance(error, OSError):
        from twinpass.report.files import reason

        return f"{error.filename or 'a file, or what this command writes to,'} cannot be used: {reason(error)}"
    if isinstance(error, MemoryError):
        return "there is not enough memory; lower reuse.budget, optimizer.batch_size or estimator.probes"
    return str(error)


def _say(args: argparse.Namespace, text: str, goes_on: bool) -> None:
    """The last words of a command, and how a run that has begun goes on."""
    from twinpass.report.terminal import cleared

    folder = getattr(args, "resumable", None)
    further = f"; continue with: twinpass train --resume {shlex.quote(str(folder))}" if folder and goes_on else ""
    with last_words(sys.stdout):
        if args.json:
            say({"event": "error", "error": f"{text}{further}".removeprefix("error: ")})
    with last_words(sys.stderr):
        print(f"twinpass {args.command}: {cleared(text)}{cleared(further)}", file=sys.stderr, flush=True)
