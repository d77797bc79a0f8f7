"""``twinpass profile``."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinpass.cli.lines import HELP
from twinpass.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from twinpass.config.schema import Config

EPS = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1)
NAMES = ("exact", "reflected", "reflected-all", "transported", "frozen", "debiased", "one_sided")
"""What is compared: policies, one of them without a limit, and another estimator."""


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
    command.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file, such as twinpass init prints")
    command.add_argument(
        "--eps", type=float, nargs="+", default=list(EPS), metavar="E", help="perturbation scales to try"
    )
    command.add_argument(
        "--policies",
        nargs="+",
        choices=NAMES,
        metavar="P",
        help=f"of {', '.join(NAMES)} (default: all that apply)",
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
    command.add_argument("--copy", type=Path, metavar="FILE", help="write the result to this file as well")
    command.add_argument("--json", action="store_true", help=HELP.format("the result"))
    command.set_defaults(run=run)


def run(args: argparse.Namespace, console: "Console") -> int:
    """Measure, write, print."""
    from twinpass.config.load import load_config

    config = load_config(args.config, args.set)
    _require_sense(args, config)
    names = args.policies or _that_apply(config)
    if set(names) != set(args.policies or NAMES):
        console.print(
            f"these weights share prefixes exactly, there is nothing to approximate: comparing {', '.join(names)}"
        )
    from twinpass.cli.profiling import profile

    return profile(args, config, names, console)


def _require_sense(args: argparse.Namespace, config: "Config") -> None:
    from twinpass.estimate.spsa import Spsa

    problems = []
    if args.probes < 2:
        problems.append(f"--probes {args.probes}: a fidelity needs at least 2, and means something from 32 on")
    if not all(0 < eps < 10 for eps in args.eps):
        problems.append("--eps: expected positive numbers, such as 1e-4 1e-3 1e-2")
    if not isinstance(config.estimator, Spsa) or config.engine.perturbation != "tandem":
        problems.append(
            '[estimator]: profiles compare with two-sided SPSA in tandem; set kind = "spsa", and [engine] perturbation = "tandem"'
        )
    if impossible := set(args.policies or ()) - set(_that_apply(config)):
        problems.append(
            f"--policies {' '.join(sorted(impossible))}: these weights share prefixes exactly, there is nothing to approximate; "
            "use --policies exact one_sided"
        )
    if problems:
        raise ConfigError(str(args.config), problems)


def _that_apply(config: "Config") -> list[str]:
    """Policies for what is trained: approximations are for weights that act on every token in every layer."""
    from twinpass.model.trainable import Activated

    trainable = config.trainable
    shares = isinstance(trainable, Activated) or getattr(trainable, "first", 0) > 0
    return ["exact", "one_sided"] if shares else list(NAMES)
