"""``twinpass predict`` and ``twinpass generate``: use what a run has trained."""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinpass.cli.lines import HELP, say
from twinpass.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from twinpass.task.rows import Row
    from twinpass.use.trained import TrainedModel


def add(commands: Any) -> None:
    """Declare both commands."""
    predict = commands.add_parser(
        "predict",
        help="answer rows with what a run has trained",
        description=(
            "Answer rows with what a run has trained: the most probable option and the probability of each, or a text, written greedily. "
            'A line of JSON a row: its fields, and "prediction". Rows need not say what is right. A file that is half written is continued.'
        ),
    )
    predict.add_argument("folder", type=Path, metavar="RUN", help="the folder of a run")
    predict.add_argument("rows", type=Path, metavar="ROWS", help="a file of rows, as for training")
    predict.add_argument("--out", type=Path, metavar="FILE", help="where to write (default: standard output)")
    _common(predict)
    predict.set_defaults(run=run_predict)
    generate = commands.add_parser(
        "generate",
        help="let what a run has trained continue a text",
        description="Continue texts greedily with what a run has trained. The prompt is taken as it is, without the task's template.",
    )
    generate.add_argument("folder", type=Path, metavar="RUN", help="the folder of a run")
    generate.add_argument("--prompt", action="append", required=True, metavar="TEXT", help="repeat it for several")
    _common(generate)
    generate.set_defaults(run=run_generate)


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--step", type=int, metavar="N", help="the weights that 'twinpass replay RUN --step N' rebuilt"
    )
    command.add_argument("--max-tokens", type=int, metavar="N", help="of a text (default: as in training, or 128)")
    command.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="a text ends before it; repeat it for several (default: as in training)",
    )
    command.add_argument("--json", action="store_true", help=HELP.format("results"))


def run_predict(args: argparse.Namespace, console: "Console") -> int:
    """Predict row by row."""
    _require_sense(args)
    from rich.progress import Progress

    from twinpass.task.sources.read import read_rows
    from twinpass.use.predictions import digest_of, finished, together, write
    from twinpass.use.trained import load

    rows = read_rows(args.rows)
    console.print(f"loading {args.folder} ...")
    trained = load(args.folder, args.step)
    weights = digest_of(trained.weights)
    done = 0 if args.out is None else finished(args.out, rows, weights)
    if done:
        console.print(f"{args.out} holds {done} of {len(rows)} rows; going on from there")
    left = rows[done:]
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("predicting", total=len(rows), completed=done)
        lines = together(left, weights, _predictions(trained, left, args))
        told = (_told(line, lambda: progress.advance(bar)) for line in lines)
        if args.out is None:
            for line in told:
                print(line, end="")
        else:
            write(args.out, told)
    if args.out is not None:
        console.print(f"{len(rows)} predictions: {args.out}")
        if args.json:
            say({"predictions": str(args.out), "rows": len(rows), "continued_from": done})
    return 0


def run_generate(args: argparse.Namespace, console: "Console") -> int:
    """Generate and print."""
    _require_sense(args)
    from twinpass.use.trained import load

    console.print(f"loading {args.folder} ...")
    trained = load(args.folder, args.step)
    texts = trained.generate(args.prompt, *trained.room(args.max_tokens, args.stop))
    for prompt, text in zip(args.prompt, texts, strict=True):
        if args.json:
            say({"prompt": prompt, "text": text})
        else:
            print(text)
    return 0


def _predictions(trained: "TrainedModel", rows: "list[Row]", args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
    if trained.chooses:
        yield from map(asdict, trained.answers(trained.examples(rows)))
        return
    max_tokens, stop = trained.room(args.max_tokens, args.stop)
    if trained.continues:
        yield from ({"text": text} for text in trained.write(rows, max_tokens, stop))
        return
    for prompt in trained.prompts(rows):
        yield {"text": trained.generate([prompt], max_tokens, stop)[0]}


def _told(line: str, tell: Any) -> str:
    tell()
    return line


def _require_sense(args: argparse.Namespace) -> None:
    if args.max_tokens is not None and args.max_tokens < 1:
        raise ConfigError("command line", [f"--max-tokens {args.max_tokens}: expected at least 1"])
    if "" in args.stop:
        raise ConfigError("command line", ["--stop: expected some text, got none"])
