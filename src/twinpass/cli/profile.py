"""``twinpass profile``."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from twinpass.analysis.profile import EXACT, Profile
from twinpass.analysis.sweep import Bench, Contender
from twinpass.config.build import Run, build_embedded
from twinpass.config.load import load_config, portable
from twinpass.config.schema import Config
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import ConfigError
from twinpass.estimate.one_sided import OneSided
from twinpass.estimate.spsa import Spsa
from twinpass.model.trainable import Activated
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json
from twinpass.report.plots_profile import draw_profile
from twinpass.reuse.base import Policy
from twinpass.reuse.debiased import Debiased
from twinpass.reuse.exact import Exact
from twinpass.reuse.frozen import Frozen
from twinpass.reuse.reflected import Reflected
from twinpass.reuse.transported import Transported
from twinpass.train.batches import batch

EPS = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1)
UNBOUNDED = 1e9
POLICIES: Mapping[str, Policy] = {
    EXACT: Exact(),
    "reflected": Reflected(),
    "reflected-all": Reflected(tolerance=UNBOUNDED),
    "transported": Transported(),
    "frozen": Frozen(),
    "debiased": Debiased(inner=Frozen()),
    "one_sided": Exact(),
}
"""What is compared, unless the configuration has the same policy with other settings. ``reflected-all`` takes every
reflection, whatever its error; ``one_sided`` is another estimator."""


def add(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "profile",
        help="measure what reuse policies save and cost, over eps",
        description=(
            "Score one batch of a task under many probes, at every eps and policy: hit rate, work saved, and the fidelity of "
            "the gradient beside them; then recommend a policy, an eps and a dtype. Nothing is trained."
        ),
    )
    command.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file, such as examples/reviews-8shot.toml")
    command.add_argument(
        "--eps", type=float, nargs="+", default=list(EPS), metavar="E", help="perturbation scales to try"
    )
    command.add_argument(
        "--policies",
        nargs="+",
        choices=list(POLICIES),
        metavar="P",
        help=f"of {', '.join(POLICIES)} (default: all that apply)",
    )
    command.add_argument("--probes", type=int, default=32, metavar="N", help="directions at each eps (default: 32)")
    command.add_argument(
        "--dtypes",
        nargs="+",
        choices=["float32", "bfloat16"],
        metavar="D",
        help="default: the configuration's model.dtype",
    )
    command.add_argument(
        "--jvp", action="store_true", help="hold everything against forward-mode derivatives too (slow)"
    )
    command.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a setting")
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of profile.json and plots (default: runs/profile-NAME)"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write the result to this file as well")
    command.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Measure, write, print."""
    config = load_config(args.config, args.set)
    _require_sense(args, config)
    names = args.policies or _that_apply(config)
    if set(names) != set(args.policies or POLICIES):
        console.print(
            f"these weights share prefixes exactly, there is nothing to approximate: comparing {', '.join(names)}"
        )
    out = args.out or Path("runs") / f"profile-{args.config.stem}"
    profile = Profile(_contenders(config, names), sorted(set(args.eps)), args.jvp)
    dtypes = args.dtypes or [config.model.dtype]
    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        for dtype in dtypes:
            session = build_embedded(replace(config, model=replace(config.model, dtype=dtype)))
            bar = progress.add_task(f"profiling in {dtype}", total=profile.parts(args.probes))
            bench = _bench(
                session, config, args.probes, lambda part, bar=bar: progress.update(bar, advance=1, description=part)
            )
            profile.measure(bench, dtype)
    facts = {"config": portable(config), "commit": commit(), "machine": machine(), "versions": versions()}
    result = {**profile.result(), **facts}
    out.mkdir(parents=True, exist_ok=True)
    for path in {out / "profile.json", args.json or out / "profile.json"}:
        write_json(path, result)
    plots = draw_profile(result, out)
    _print(console, result, [out / "profile.json", *plots])
    return 0


def _require_sense(args: argparse.Namespace, config: Config) -> None:
    problems = []
    if args.probes < 2:
        problems.append(f"--probes {args.probes}: a fidelity needs at least 2, and means something from 32 on")
    if not all(0 < eps < 10 for eps in args.eps):
        problems.append("--eps: expected positive numbers, such as 1e-4 1e-3 1e-2")
    if not isinstance(config.estimator, Spsa) or config.estimator.perturbation != "tandem":
        problems.append(
            '[estimator]: profiles compare with two-sided SPSA in tandem; set kind = "spsa", perturbation = "tandem"'
        )
    if impossible := set(args.policies or ()) - set(_that_apply(config)):
        problems.append(
            f"--policies {' '.join(sorted(impossible))}: these weights share prefixes exactly, there is nothing to approximate; "
            "use --policies exact one_sided"
        )
    if problems:
        raise ConfigError(str(args.config), problems)


def _that_apply(config: Config) -> list[str]:
    """Policies for what is trained: approximations are for weights that act on every token in every layer."""
    trainable = config.trainable
    shares = isinstance(trainable, Activated) or getattr(trainable, "first", 0) > 0
    return [EXACT, "one_sided"] if shares else list(POLICIES)


def _contenders(config: Config, names: Sequence[str]) -> list[Contender]:
    estimator = config.estimator
    one_sided = OneSided(estimator.probes, estimator.noise)
    chosen = {EXACT, *names}
    contenders = []
    for name, policy in POLICIES.items():
        if name in chosen:
            own = config.reuse if type(config.reuse) is type(policy) and name != "reflected-all" else policy
            sized = replace(own, budget=config.reuse.budget, page_size=config.reuse.page_size)
            kind = one_sided if name == "one_sided" else estimator
            contenders.append(Contender(name, kind, sized, moves=isinstance(sized, Transported)))
    return contenders


def _bench(session: Run[TorchEngine], config: Config, probes: int, told: Any) -> Bench:
    plan = session.plan
    examples = batch(plan.train, plan.optimizer.batch_size, plan.seed, 0)
    return Bench(session.engine, plan.objective, examples, config.run.seed, probes, plan.optimizer.lr_at(0), told)


def _print(console: Console, result: Mapping[str, Any], files: Sequence[Path]) -> None:
    table = Table(
        "policy", "dtype", "eps", "hit rate", "accepted", "compute saved", "error of g", "correlation", "signs"
    )
    for row in result["rows"]:
        accepted = "" if row["accepted_hit_rate"] is None else f"{row['accepted_hit_rate']:.0%}"
        correlation = "" if row["correlation"] is None else f"{row['correlation']:.3f}"
        table.add_row(
            row["policy"],
            row["dtype"],
            f"{row['eps']:.0e}",
            f"{row['hit_rate']:.1%}",
            accepted,
            f"{row['compute_saved']:.1%}",
            f"{row['relative_error']:.2g}",
            correlation,
            f"{row['sign_agreement']:.0%}",
        )
    console.print(table)
    advice = result["recommendation"]
    console.print(
        f"use [bold]{advice['policy']}[/bold] with eps {advice['eps']:.0e} in {advice['dtype']}: {advice['reason']}"
    )
    for file in files:
        console.print(f"{file}")
