"""``twinpass eval``."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinpass.cli.lines import HELP, alone, loading, paper, say
from twinpass.cli.runs import require_run
from twinpass.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from twinpass.cli.standing import Standing
    from twinpass.objective.rewards import Rewards
    from twinpass.report.measures import Choices, ScoredTexts
    from twinpass.task.rows import Item


def add(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "eval",
        help="score held-out rows, or others",
        description=(
            "Score the held-out rows: of a configuration's base model, or of a run as it stands after any step. Other rows of the run's "
            "task are named behind it; they have to say what is right. Measures come with 95% "
            "intervals by a bootstrap over rows: accuracy, macro-F1, cross-entropy, calibration error and the table of confusions for options, "
            "token probability and perplexity for texts."
        ),
    )
    command.add_argument("target", type=Path, metavar="CONFIG|RUN", help="a configuration file, or the folder of a run")
    command.add_argument(
        "rows",
        nargs="*",
        metavar="ROWS",
        help='other rows than the held-out ones, read as for training: files, patterns, datasets, or "-" for standard input',
    )
    command.add_argument(
        "--step", type=int, metavar="N", help="a run's weights after N steps (default: those it keeps)"
    )
    command.add_argument(
        "--task", type=Path, metavar="CONFIG", help="score a run on the held-out rows of another configuration's [task]"
    )
    command.add_argument(
        "--compare",
        type=Path,
        metavar="RUN",
        help="score another run on the same rows, and test the difference: McNemar's exact test, or a paired bootstrap for texts",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override a setting of a configuration file",
    )
    command.add_argument(
        "--write",
        action="store_true",
        help="of a run that writes texts, also let it write each row's, greedily: exact match, token F1, and ROUGE with rouge-score",
    )
    command.add_argument("--max-tokens", type=int, metavar="N", help="of a written text (default: 128)")
    command.add_argument(
        "--reward",
        action="append",
        default=[],
        metavar="FILE.PY:FUNCTION",
        help="what this function makes of written texts, and the share that it gives more than 0; its column answer is the right text",
    )
    command.add_argument("--json", action="store_true", help=HELP.format("the result"))
    command.set_defaults(run=run)


def run(args: argparse.Namespace, console: "Console") -> int:
    """Evaluate, compare, print."""
    _require_sense(args)
    with alone(args.json):
        result, found, places = _evaluate(args.target, args.step, args, console)
        if args.compare is not None:
            other, others, other_places = _evaluate(args.compare, None, args, console)
    if args.compare is not None:
        result = {**result, "compared_with": {"run": str(args.compare), **other}}
        result["comparison"] = _compared(found, others, places, other_places)
    if args.json:
        say(result)
    else:
        _print(paper(), result, "" if args.rows else "held-out ")
    return 0


def _require_sense(args: argparse.Namespace) -> None:
    if not args.target.exists():
        raise ConfigError(
            "command line", [f"{args.target}: there is neither a run nor a configuration file of that name"]
        )
    problems = []
    is_run = args.target.is_dir()
    if is_run and args.set:
        problems.append("--set changes a configuration file; a run is evaluated as it was trained")
    for option in ("step", "task", "compare"):
        if not is_run and getattr(args, option) is not None:
            problems.append(f"--{option} needs the folder of a run, not a configuration file")
    if args.rows and not is_run:
        problems.append("ROWS are scored by a run; for the base model name them in task.eval")
    if args.rows and args.task is not None:
        problems.append("--task names rows of its own; leave ROWS out")
    if args.write and not is_run:
        problems.append("--write needs the folder of a run; --step 0 is its base model")
    if (args.reward or args.max_tokens is not None) and not args.write:
        problems.append("--reward and --max-tokens are for texts that are written; add --write")
    if args.max_tokens is not None and args.max_tokens < 1:
        problems.append(f"--max-tokens {args.max_tokens}: expected at least 1")
    if "-" in args.rows and args.compare is not None:
        problems.append("standard input is read once; two runs are compared on rows in a file")
    if problems:
        raise ConfigError("command line", problems)


def _evaluate(
    target: Path, step: int | None, args: argparse.Namespace, console: "Console"
) -> "tuple[dict[str, Any], Choices | ScoredTexts | None, Sequence[str]]":
    """What is printed, the outcome of each row, and the rows."""
    from rich.progress import Progress

    from twinpass.config.load import load_config

    other = None if args.task is None else load_config(args.task)
    rewards = _rewards(args.reward)
    config = None if target.is_dir() else load_config(target, args.set)
    if config is None:
        require_run(target)
    rows = _rows(target, args.rows) if args.rows else None
    loading(console, target)
    from twinpass.cli.standing import of_run, of_session
    from twinpass.objective.completion import Completion
    from twinpass.use.measure import written
    from twinpass.use.settings import settings_of

    if config is None:
        stands = of_run(target, step, console, elsewhere=rows is not None or other is not None)
    else:
        from twinpass.config.compose import build

        session = build(config)
        stands = of_session(session, 0)
        for note in session.notes:
            console.print(note, markup=False)
    with closing(stands.engine), closing(stands.objective), Progress(console=console, transient=True) as progress:
        if other is not None:
            stands = stands.of_task(other, settings_of(target).trainable, console)
        if rows is not None:
            known = settings_of(target)
            stands = stands.of_rows(rows, known.task, known.generation, console)
        if not stands.held_out:
            raise DataError("no rows are held out; name some, as in: twinpass eval RUN rows.jsonl")
        if args.write and not isinstance(stands.objective, Completion):
            raise ConfigError("command line", ["--write: rows of this task have no text to write; leave it out"])
        facts, outcome = _measured(stands, progress)
        if args.write:
            writer, sampling = stands.writing(settings_of(target).trainable, args.max_tokens)
            told = _bar(progress, "writing", stands)
            facts["measures"] |= written(writer, stands.held_out, sampling, rewards, told).measures()
    places = [example.place for example in stands.held_out]
    return {"step": stands.step, **facts, "examples": len(places)}, outcome, places


def _measured(stands: "Standing", progress: "Progress") -> "tuple[dict[str, Any], Choices | ScoredTexts | None]":
    """What the weights make of the rows, and of each; None: their goal has no measures but its own."""
    from twinpass.task.choice import ChoiceTemplate
    from twinpass.use.measure import outcomes

    objective, template, told = stands.objective, stands.template, _bar(progress, "evaluating", stands)
    found = outcomes(stands.engine, objective, stands.held_out, told)
    if found is None:
        value = objective.evaluate(stands.engine, stands.held_out, told, stands.at)
        facts = {"metric_name": value.metric_name, "metric": value.metric, "loss": value.loss, "measures": {}}
        return facts | ({"metrics": dict(value.metrics), "samples": dict(value.samples)} if value.samples else {}), None
    scored, loss = found
    measures = scored.measures()
    kinds = {"options": list(template.kinds)} if isinstance(template, ChoiceTemplate) else {}
    metric = measures[objective.metric_name]["value"]
    facts = {"metric_name": objective.metric_name, "metric": metric, "loss": loss, "measures": dict(measures), **kinds}
    return facts, scored


def _bar(progress: "Progress", what: str, stands: "Standing") -> Callable[[int], None]:
    bar = progress.add_task(what, total=len(stands.held_out))
    return lambda done: progress.update(bar, completed=done)


def _rewards(names: Sequence[str]) -> "Rewards | None":
    """Functions by name, found before anything is loaded; None: there are none."""
    if not names:
        return None
    from twinpass.objective.reward_functions import load_reward, named_apart
    from twinpass.objective.rewards import Rewards

    return Rewards(named_apart([load_reward(name) for name in names]))


def _rows(run: Path, names: Sequence[str]) -> "Sequence[Item]":
    """Rows that are named behind a run, read before anything is loaded."""
    from twinpass.cli.predict import sourced
    from twinpass.config.load import load_run
    from twinpass.train.folder import RunFolder
    from twinpass.train.header import FINETUNE

    if FINETUNE in RunFolder(run).settings():
        from twinpass.use.settings import settings_of

        task = settings_of(run).task
    else:
        task = load_run(run, engine=False).task
    return task.read([sourced(name) for name in names], "rows")


def _compared(
    first: "Choices | ScoredTexts | None",
    second: "Choices | ScoredTexts | None",
    places: Sequence[str],
    others: Sequence[str],
) -> dict[str, Any]:
    from twinpass.report.measures import Choices, ScoredTexts

    if places != others:
        raise DataError(
            "the two runs hold out other rows; name those to compare them on behind the first run, or by --task CONFIG"
        )
    if isinstance(first, Choices) and isinstance(second, Choices):
        return first.against(second)
    if isinstance(first, ScoredTexts) and isinstance(second, ScoredTexts):
        return first.against(second)
    raise DataError("there is no test for these two: both runs have to choose among options, or both to write texts")


def _print(console: "Console", result: Mapping[str, Any], whose: str) -> None:
    from twinpass.report.shown import figure, shown
    from twinpass.report.terminal import safe

    console.print(
        f"{whose}{result['metric_name']} at step {result['step']}: [bold]{shown(result['metric_name'], result['metric'])}[/bold]"
        f"  (loss {result['loss']:.3f}, {result['examples']} rows)"
    )
    for name, value in result["measures"].items():
        if name == "confusion":
            console.print("confusion (a line for each right option, a column for each chosen one)")
            console.print(_table(result["options"], value))
        else:
            console.print(
                f"{name.replace('_', ' '):<20}{figure(value['value']):>8}   95% {figure(value['low'])} to {figure(value['high'])}"
            )
    for name, value in result.get("metrics", {}).items():
        console.print(f"{name:<32}{value:>10.4f}", markup=False)
    for kind, records in result.get("samples", {}).items():
        for record in records[:1]:
            console.print(f"{kind}, {record['reward']:.3f}: {record['completion']!r:.160}", markup=False)
    if comparison := result.get("comparison"):
        found, other = comparison["difference"], result["compared_with"]
        console.print(
            f"against {safe(other['run'])} ({shown(other['metric_name'], other['metric'])}): {comparison['measure']} {found['value']:+.3f} "
            f"(95% {found['low']:+.3f} to {found['high']:+.3f}), p = {comparison['p_value']:.3g} ({comparison['test']})"
        )


def _table(names: Sequence[str], counts: Sequence[Sequence[int]]) -> "Table":
    """Counts under the names of the chosen options, beside those of the right ones; names are cut where the terminal is narrow."""
    from rich.table import Table
    from rich.text import Text

    from twinpass.report.terminal import cleared

    table = Table(box=None)
    table.add_column("", overflow="ellipsis", no_wrap=True)
    for name in names:
        table.add_column(Text(cleared(name)), justify="right", overflow="ellipsis", no_wrap=True)
    for name, row in zip(names, counts, strict=True):
        table.add_row(Text(cleared(name)), *map(str, row))
    return table
