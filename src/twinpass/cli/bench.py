"""``twinpass bench``."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinpass.cli.lines import HELP, say
from twinpass.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from twinpass.config.schema import Config

EXAMPLES = Path("examples")
SHOTS = ("task.shots=8",)
FRUGAL = ("task.train_rows=400", "reuse.budget=32MiB", "reuse.spill=kv-cache", "engine.chunk_rows=256")
"""Fewer prompts, each of which has to be read once, and their keys and values on disk, not in memory; few at a time."""
RACE = "time-to-accuracy"
REWARDS = "rewards"
ONE_TEXT = (
    "estimator.kind=spsa",
    "task.samples=1",
    "generation.temperature=1.0",
    "generation.max_tokens=1",
    "generation.stop=[]",
)
WORKLOADS: Mapping[str, tuple[str, Sequence[str]]] = {
    "reviews-0shot": ("reviews-full.toml", ()),
    "reviews-8shot": ("reviews-full.toml", SHOTS),
    "options": ("options.toml", ()),
    "generation": ("generation.toml", ()),
    "activated-0shot": ("reviews-mezo.toml", ()),
    "activated-8shot": ("reviews-mezo.toml", SHOTS),
    RACE: ("reviews-mezo.toml", FRUGAL),
    REWARDS: ("gsm8k.toml", ONE_TEXT),
}
"""Named workloads: a configuration among the examples, and what is set in it."""

EVERY = {
    "linear-probe": 16,
    "informed": 1,
    "backprop": 4,
    "feedback": 4,
    "twinpass": 25,
    "first-order": 4,
    "first-order-bfloat16": 4,
    "lean": 20,
    "naive": 10,
}
"""Steps between evaluations in a race; of the probe, the fewest rows."""


def add(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "bench",
        help="time steps beside plain MeZO, or race to an accuracy",
        description=(
            "Run twinpass and plain MeZO by turns on the same batches of a task: seconds, what a step's time goes into, how near "
            "it is to the bare matrix products, hit rate, error of the gradient, peak memory. time-to-accuracy trains instead, "
            "beside plain MeZO and LoRA with AdamW. rewards lets a population write, beside texts without lanes and beside "
            "members that perturb the whole model one after another."
        ),
    )
    command.add_argument(
        "workload", metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)}; or a TOML file, for your own task"
    )
    command.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: the configuration's model.dtype")
    command.add_argument(
        "--compute-dtype",
        choices=["float32", "bfloat16"],
        help="of products; bfloat16 is timed beside our own step in float32 (default: the configuration's engine.compute_dtype)",
    )
    command.add_argument("--batch", type=int, metavar="N", help="default: the configuration's optimizer.batch_size")
    command.add_argument("--repeats", type=int, metavar="N", help="timed steps of each (default: 6)")
    command.add_argument("--lanes", type=int, metavar="N", help="of rewards: lanes that write (default: 16)")
    command.add_argument(
        "--tokens", type=int, metavar="N", help="of rewards: tokens of a text (default: 32); --batch are the prompts"
    )
    command.add_argument("--probes", type=int, metavar="N", help="directions for the error of g (default: 4)")
    command.add_argument("--target", type=float, help="accuracy, or nats of texts, that ends a race (default: 0.85)")
    command.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help=f"who races, of {', '.join(EVERY)} (default: all that suit the task)",
    )
    command.add_argument(
        "--task", type=Path, metavar="CONFIG", help="race on this TOML file's task (default: movie reviews)"
    )
    command.add_argument(
        "--seconds", type=float, help="of training after which a method gives up the race (default: 240)"
    )
    command.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a setting")
    command.add_argument("--out", type=Path, metavar="FILE", help="write the result to this file")
    command.add_argument("--json", action="store_true", help=HELP.format("the result"))
    command.add_argument("--plot", type=Path, metavar="FILE", help="draw the result into this PNG file")
    command.set_defaults(run=run)


def run(args: argparse.Namespace, console: "Console") -> int:
    """Measure, print, write."""
    _fill(args)
    config = _config(args)
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from twinpass.bench.compare import compare
    from twinpass.bench.race import race
    from twinpass.config.load import portable
    from twinpass.report.environment import commit, machine, versions
    from twinpass.report.files import write_json
    from twinpass.report.plots_bench import draw_race, draw_step

    if args.workload == REWARDS:
        from twinpass.bench.population import Size, measure

        found = measure(config, Size(args.lanes, config.optimizer.batch_size, args.tokens), args.repeats, console.print)
    elif args.workload == RACE:
        found = race(
            config,
            args.target,
            args.seconds,
            EVERY,
            lambda method, step, seconds, value: console.print(
                f"{method}: {f'{value:.1%}' if config.task.chooses else f'{value:.3f} nats'} after {step} steps, {seconds:.1f} s"
            ),
            args.methods or (),
        )
    else:
        with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as progress:
            bar = progress.add_task("measuring", total=2 * args.repeats + 2)
            found = compare(
                config, args.repeats, args.probes, lambda part: progress.update(bar, advance=1, description=part)
            )
    about = {"workload": args.workload, "config": portable(config), "commit": commit()}
    result = {**about, **found, "machine": machine(), "versions": versions()}
    if args.workload == RACE and args.out and args.out.exists():
        result = joined(json.loads(args.out.read_text()), result)
    if args.out:
        write_json(args.out, result)
    if args.plot:
        (draw_race if args.workload == RACE else draw_step)(result, args.plot)
    if args.json:
        say(result)
    else:
        print(json.dumps({key: value for key, value in result.items() if key != "config"}, indent=2))
    return 0


def joined(earlier: Mapping[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """One race from two of the same task, commit and machine, where other methods ran; otherwise the later alone."""
    same = ("workload", "config", "commit", "target", "limit_seconds", "machine", "versions")
    if any(earlier.get(key) != later[key] for key in same):
        return later
    return {**later, "methods": {**earlier["methods"], **later["methods"]}}


STEPS: Mapping[str, float] = {"repeats": 6, "probes": 4}
LIMITS: Mapping[str, float] = {"target": 0.85, "seconds": 240.0}
WRITING: Mapping[str, float] = {"repeats": 3, "lanes": 16, "tokens": 32}


def _fill(args: argparse.Namespace) -> None:
    """Defaults for the options that apply.

    Raises:
        ConfigError: one was given that does not.
    """
    own = {RACE: LIMITS, REWARDS: WRITING}.get(args.workload, STEPS)
    if args.workload != RACE and (args.methods or args.task):
        raise ConfigError(
            args.workload, [f"--methods and --task: no effect here, only {RACE} is a race; leave them out"]
        )
    if given := [
        f"--{name}" for name in {**STEPS, **LIMITS, **WRITING} if name not in own and getattr(args, name) is not None
    ]:
        kind = {RACE: f"{RACE} takes no steps by turns", REWARDS: f"{REWARDS} lets lanes write"}
        why = kind.get(args.workload, f"only {RACE} is a race, and in {REWARDS} alone lanes write")
        raise ConfigError(args.workload, [f"{' and '.join(given)}: no effect here, {why}; leave it out"])
    if args.workload == REWARDS and args.plot:
        raise ConfigError(args.workload, ["--plot: there is none of this; leave it out"])
    for name, value in {**WRITING, **STEPS, **LIMITS, **own}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def _unfair(config: "Config") -> list[str]:
    if config.objective is None or config.objective.regularise == "none":
        return []
    return ["[objective] regularise: rivals are held to nothing, which would be no fair comparison; leave it out here"]


def _config(args: argparse.Namespace) -> "Config":
    from twinpass.config.engines import TorchSettings
    from twinpass.config.load import load_config
    from twinpass.estimate.spsa import Spsa

    name, sets = WORKLOADS.get(args.workload, (args.workload, ()))
    path = EXAMPLES / name if args.workload in WORKLOADS else Path(name)
    if args.task is not None:
        path, sets = args.task, ()
    if not path.is_file():
        raise ConfigError(
            args.workload,
            [
                f"there is no {path}; named workloads ({', '.join(WORKLOADS)}) are run from a checkout of twinpass, "
                "where examples/ is; or give a configuration of your own"
            ],
        )
    options = {
        "engine.device": "cpu",
        "model.dtype": args.dtype,
        "engine.compute_dtype": args.compute_dtype,
        "optimizer.batch_size": args.batch,
    }
    chosen = [f"{key}={value}" for key, value in options.items() if value is not None]
    config = load_config(path, [*sets, *chosen, *args.set])
    problems = _unfair(config)
    if args.lanes < 2 or args.lanes % 2 or args.tokens < 1:
        problems.append(f"--lanes {args.lanes}, --tokens {args.tokens}: expected an even number, and at least 1")
    if args.workload == RACE and args.methods:
        from twinpass.bench.race import suiting

        if wrong := sorted(set(args.methods) - set(suiting(config))):
            problems.append(f"--methods {' '.join(wrong)}: expected some of {', '.join(suiting(config))}")
    if not isinstance(config.estimator, Spsa):
        problems.append('[estimator]: plain MeZO makes two-sided differences; set kind = "spsa" to compare')
    if isinstance(config.engine, TorchSettings) and config.engine.device != "cpu":
        problems.append("[engine] device: this measures a CPU; on a GPU, make bench-gpu does")
    if args.repeats < 1 or args.probes < 2:
        problems.append(f"--repeats {args.repeats}, --probes {args.probes}: expected at least 1 and 2")
    if args.target <= 0 or (config.task.chooses and args.target > 1) or args.seconds <= 0:
        problems.append(
            f"--target {args.target:g}, --seconds {args.seconds:g}: expected a share, and more than 0 seconds"
        )
    for option in (args.out, args.plot):
        if option is not None and not option.absolute().parent.is_dir():
            problems.append(f"{option}: its folder does not exist")
    if problems:
        raise ConfigError(str(path), problems)
    return config
