"""What ``twinpass profile`` does once its configuration is sound."""

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
from twinpass.cli.lines import paper, say
from twinpass.config.compose import Session, build_embedded
from twinpass.config.load import portable
from twinpass.config.schema import Config
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.estimate.one_sided import OneSided
from twinpass.objective.base import scored
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


def profile(args: argparse.Namespace, config: Config, names: Sequence[str], console: Console) -> int:
    """Measure ``names``, write, print."""
    out = args.out or Path("runs") / f"profile-{args.config.stem}"
    measured = Profile(_contenders(config, names), sorted(set(args.eps)), args.jvp)
    dtypes = args.dtypes or [config.model.dtype]
    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        for dtype in dtypes:
            session = build_embedded(replace(config, model=replace(config.model, dtype=dtype)))
            bar = progress.add_task(f"profiling in {dtype}", total=measured.parts(args.probes))
            bench = _bench(
                session, config, args.probes, lambda part, bar=bar: progress.update(bar, advance=1, description=part)
            )
            measured.measure(bench, dtype)
    facts = {"config": portable(config), "commit": commit(), "machine": machine(), "versions": versions()}
    result = {**measured.result(), **facts}
    out.mkdir(parents=True, exist_ok=True)
    for path in {out / "profile.json", args.copy or out / "profile.json"}:
        write_json(path, result)
    plots = draw_profile(result, out)
    if args.json:
        say(result)
    else:
        _print(paper(), result, [out / "profile.json", *plots])
    return 0


def _contenders(config: Config, names: Sequence[str]) -> list[Contender]:
    estimator = config.estimator
    one_sided = OneSided(estimator.probes)
    chosen = {EXACT, *names}
    contenders = []
    for name, policy in POLICIES.items():
        if name in chosen:
            own = config.reuse if type(config.reuse) is type(policy) and name != "reflected-all" else policy
            sized = replace(own, budget=config.reuse.budget, page_size=config.reuse.page_size)
            kind = one_sided if name == "one_sided" else estimator
            contenders.append(Contender(name, kind, sized, moves=isinstance(sized, Transported)))
    return contenders


def _bench(session: Session[TorchEngine], config: Config, probes: int, told: Any) -> Bench:
    plan = session.plan.held(session.engine)
    examples = batch(plan.train, plan.optimizer.batch_size, plan.seed, 0)
    return Bench(
        session.engine, scored(plan.objective), examples, config.run.seed, probes, plan.optimizer.lr_at(0), told
    )


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
