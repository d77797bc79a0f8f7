"""``twinpass predict`` and ``twinpass generate``: use what a run has trained."""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinpass.cli.lines import HELP, loading, say
from twinpass.cli.runs import require_run
from twinpass.errors import ConfigError, DataError
from twinpass.paths import expand

if TYPE_CHECKING:
    from rich.console import Console

    from twinpass.task.rows import Item, Row
    from twinpass.use.trained import TrainedModel

PROMPT = "prompt"
"""The field of rows that are continued as they are."""

WRITING = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop")
"""Options that say how texts are written."""


def add(commands: Any) -> None:
    """Declare both commands."""
    predict = commands.add_parser(
        "predict",
        help="answer rows with what a run has trained",
        description=(
            "Answer rows with what a run has trained: the most probable option and the probability of each, or a text, by default the most probable. "
            'A line of JSON a row: its fields, and "prediction". Rows need not say what is right. A file that is half written is continued.'
        ),
    )
    predict.add_argument("folder", type=Path, metavar="RUN", help="the folder of a run")
    predict.add_argument(
        "rows",
        nargs="+",
        metavar="ROWS",
        help='files, patterns, folders or names of datasets, or "-" for JSON lines on standard input, as for training',
    )
    predict.add_argument("--out", type=Path, metavar="FILE", help="where to write (default: standard output)")
    _common(predict)
    predict.set_defaults(run=run_predict)
    generate = commands.add_parser(
        "generate",
        help="let what a run has trained continue a text",
        description="Continue texts with what a run has trained. The prompt is taken as it is, without the task's template.",
    )
    generate.add_argument("folder", type=Path, metavar="RUN", help="the folder of a run")
    generate.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="repeat it for several")
    generate.add_argument(
        "--rows",
        nargs="+",
        metavar="ROWS",
        help='rows with a field prompt, from wherever training takes them; a line of JSON each: its fields, and "prediction"',
    )
    generate.add_argument(
        "--out", type=Path, metavar="FILE", help="where to write those lines; one that is half written is continued"
    )
    _common(generate)
    generate.set_defaults(run=run_generate)


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--step", type=int, metavar="N", help="the weights that 'twinpass replay RUN --step N' rebuilt"
    )
    command.add_argument("--max-tokens", type=int, metavar="N", help="of a text (default: as in training, or 128)")
    command.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="sample texts at it (default: 0, the most probable token each time)",
    )
    command.add_argument("--top-p", type=float, metavar="P", help="sample from the likeliest tokens that add up to it")
    command.add_argument("--top-k", type=int, metavar="K", help="sample from so many of the likeliest tokens")
    command.add_argument("--seed", type=int, metavar="N", help="of sampling (default: 0)")
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
    chosen = _chosen(args)
    require_run(args.folder)
    loading(console, args.folder)
    from twinpass.task.rows import every
    from twinpass.task.sources.read import sound
    from twinpass.use.settings import settings_of
    from twinpass.use.trained import load

    settings = settings_of(args.folder)
    rows = sound(settings.task.read([sourced(name) for name in args.rows], "rows"))
    every(rows, settings.template.require_filled)  # before a model is loaded
    trained = load(args.folder, args.step)
    if trained.chooses and chosen:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in chosen)
        raise ConfigError("command line", [f"{options}: the task is to choose, and no text is written; leave it out"])
    return _each(args, console, trained, rows, lambda left, done: _predictions(trained, left, chosen, done))


def _each(
    args: argparse.Namespace,
    console: "Console",
    trained: "TrainedModel",
    rows: "list[Row]",
    predicted: "Callable[[list[Row], int], Iterator[Mapping[str, Any]]]",
) -> int:
    """Write a line for each row that the file does not hold yet; what is ``predicted`` goes by how many it holds."""
    from rich.progress import Progress

    from twinpass.use.predictions import digest_of, encodable, finished, require_room, together, write

    require_room(rows)
    weights = digest_of(trained.weights)
    done = 0 if args.out is None else finished(args.out, rows, weights)
    if done:
        console.print(f"{args.out} holds {done} of {len(rows)} rows; going on from there")
    left = rows[done:]
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("predicting", total=len(rows), completed=done)
        lines = together(left, weights, predicted(left, done))
        told = (_told(line, lambda: progress.advance(bar)) for line in lines)
        if args.out is None:
            for line in told:
                print(encodable(line, sys.stdout.encoding or "utf-8"), end="")
        else:
            write(args.out, told)
    if args.out is not None:
        console.print(f"{len(rows)} predictions: {args.out}")
        if args.json:
            say({"predictions": str(args.out), "rows": len(rows), "continued_from": done})
    return 0


def run_generate(args: argparse.Namespace, console: "Console") -> int:
    """Generate and print."""
    chosen = _chosen(args)
    if bool(args.prompt) == bool(args.rows):
        raise ConfigError("command line", ["give either --prompt, or --rows"])
    if args.out is not None and not args.rows:
        raise ConfigError("command line", ["--out: a line for each of --rows goes there; leave it out"])
    require_run(args.folder)
    rows = _with_prompts(args.rows) if args.rows else []
    loading(console, args.folder)
    from twinpass.use.trained import load

    trained = load(args.folder, args.step)
    sampling = trained.sampling(**chosen)
    if rows:
        return _each(
            args,
            console,
            trained,
            rows,
            lambda left, done: (
                {"text": text} for text in trained.texts([row.fields[PROMPT] for row in left], sampling, done)
            ),
        )
    for prompt, text in zip(args.prompt, trained.texts(args.prompt, sampling), strict=True):
        if args.json:
            say({"prompt": prompt, "text": text})
        else:
            print(text)
    return 0


def _with_prompts(names: Sequence[str]) -> "list[Row]":
    """Rows whose prompts are texts.

    Raises:
        DataError: naming those that are none.
    """
    from twinpass.task.fields import text_of
    from twinpass.task.rows import Row
    from twinpass.task.sources.read import read, sound

    def asked(item: "Item") -> "Item":
        if isinstance(item, Row) and not isinstance(item.fields.get(PROMPT), str):
            return DataError(
                f"{item.place}: there is no text in a field {PROMPT}; 'twinpass predict' makes prompts of other rows as the run's task does"
            )
        try:
            if isinstance(item, Row):
                text_of(item, PROMPT, "command")
        except DataError as error:
            return error
        return item

    return sound(map(asked, read([sourced(name) for name in names], "rows")))


def _predictions(
    trained: "TrainedModel", rows: "list[Row]", chosen: Mapping[str, Any], first: int
) -> Iterator[Mapping[str, Any]]:
    if trained.chooses:
        yield from map(asdict, trained.answers(trained.examples(rows)))
        return
    yield from ({"text": text} for text in trained.write(rows, trained.sampling(**chosen), first))


def sourced(name: str) -> str:
    """A source as the command line has it."""
    return str(expand(name)) if name.startswith("~") else name


def _told(line: str, tell: Any) -> str:
    tell()
    return line


def _chosen(args: argparse.Namespace) -> dict[str, Any]:
    """What is said of how texts are written.

    Raises:
        ConfigError: it makes no sense.
    """
    from twinpass.core import Sampling

    chosen = {name: getattr(args, name) for name in WRITING if getattr(args, name) not in (None, [])}
    sampling = Sampling(**{"max_tokens": 1, **chosen})
    problems = []
    if sampling.max_tokens < 1:
        problems.append(f"--max-tokens {sampling.max_tokens}: expected at least 1")
    if "" in sampling.stop:
        problems.append("--stop: expected some text, got none")
    if not 0 <= sampling.temperature < math.inf:
        problems.append(f"--temperature {sampling.temperature:g}: expected 0 or more")
    if not 0 < sampling.top_p <= 1:
        problems.append(f"--top-p {sampling.top_p:g}: expected a probability above 0")
    if sampling.top_k < 0 or sampling.seed < 0:
        problems.append(f"--top-k {sampling.top_k}, --seed {sampling.seed}: expected 0 or more")
    if not sampling.temperature and (given := chosen.keys() & {"top_p", "top_k", "seed"}):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(given))
        problems.append(f"{options}: nothing is sampled at temperature 0; give --temperature, or leave it out")
    if problems:
        raise ConfigError("command line", problems)
    return chosen
