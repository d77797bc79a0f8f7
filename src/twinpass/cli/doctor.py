"""``twinpass doctor``."""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from twinpass.cli.lines import HELP, loading, paper, say
from twinpass.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from twinpass.use.doctor import Diagnosis, KindFound

LONGEST = 10.0
"""Seconds that steps are timed for, at the most."""


def add(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "doctor",
        help="what can be done with a model, and what it takes",
        description=(
            "Load a model and try on a few made-up tokens what twinpass would do with it: whether its batches are packed, which weights "
            "can be trained by which estimators under which reuse policies, what memory weights and cached tokens take, and about "
            "how long a step lasts. What does not work is said with its reason. Nothing is written, and no weight changes."
        ),
    )
    command.add_argument("model", metavar="MODEL", help='a folder, .gguf file or hub id, as model.path; or "smollm2"')
    command.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float64"],
        default="float32",
        help="as model.dtype (default: float32)",
    )
    command.add_argument(
        "--tokens", type=int, default=64, metavar="N", help="of each prompt, in the steps that are timed (default: 64)"
    )
    command.add_argument(
        "--seconds", type=float, default=LONGEST, metavar="S", help="for timing steps, 0 to 10; 0: none (default: 10)"
    )
    command.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that the checkpoint brings along"
    )
    command.add_argument("--verbose", action="store_true", help="say of every reuse policy, too, why it does not go")
    command.add_argument("--json", action="store_true", help=HELP.format("the result"))
    command.set_defaults(run=run)


def run(args: argparse.Namespace, console: "Console") -> int:
    """Look, and print."""
    _require_sense(args)
    loading(console, args.model)
    from twinpass.model.load import load
    from twinpass.use.doctor import diagnose

    model, _ = load(args.model, args.dtype, trust_remote_code=args.trust_remote_code)
    with console.status("") as status:
        found = diagnose(
            args.model,
            model,
            tokens=args.tokens,
            seconds=args.seconds,
            told=lambda part: status.update(f"trying {part}"),
        )
    if args.json:
        say(asdict(found))
    else:
        out = paper()
        for line in _lines(found, args.verbose):
            out.print(line, markup=False, soft_wrap=True)
    return 0


def _require_sense(args: argparse.Namespace) -> None:
    problems = []
    if not 0 <= args.seconds <= LONGEST:
        problems.append(f"--seconds {args.seconds:g}: expected 0 to {LONGEST:g}")
    if args.tokens < 1:
        problems.append(f"--tokens {args.tokens}: expected at least 1")
    if problems:
        raise ConfigError("command line", problems)


def _lines(found: "Diagnosis", verbose: bool) -> Iterator[str]:
    window = "no known window" if found.window is None else f"window {found.window:,}"
    yield (
        f"{found.architecture}, {found.parameters:,} weights in {found.dtype}, {found.layers} layers, "
        f"{found.vocabulary:,} tokens, {window}"
    )
    packing = found.packing
    if packing.packs:
        yield (
            f"packs       yes: in float64 its scores are off by {packing.off:.1g} nats, up to {packing.allowed:.1g} is rounding"
        )
    else:
        yield f"packs       no: {packing.reason}"
        yield "            its own forward runs instead: exact, slower, and nothing is reused"
    yield f"memory      weights {_size(found.weights_bytes)}"
    if found.kv_bytes_per_1000_tokens:
        yield f"            keys and values of 1,000 tokens {_size(found.kv_bytes_per_1000_tokens)}, in all layers"
    if found.bfloat16_share is not None and found.packing.packs:
        yield (
            f"products    in bfloat16 take {found.bfloat16_share:.2f} of the time of float32's: "
            '[engine] compute_dtype = "bfloat16"'
        )
    for name, kind in found.trainables.items():
        yield ""
        yield from _kind_lines(name, kind, verbose)


def _seconds(value: float) -> str:
    return f"{value:,.0f} s" if value >= 10 else f"{value:.2g} s"


def _between(least: float, most: float) -> str:
    return _seconds(least) if _seconds(least) == _seconds(most) else f"{_seconds(least)} to {_seconds(most)}"


def _kind_lines(name: str, kind: "KindFound", verbose: bool) -> Iterator[str]:
    if not kind.works:
        yield f"{name:<12}no: {kind.reason}"
        return
    kept = f", keeps {_size(kind.kv_bytes_per_1000_tokens)} for 1,000 tokens" if kind.kv_bytes_per_1000_tokens else ""
    yield f"{name:<12}{kind.trained:,} numbers to train{kept}"
    if kind.step is not None:
        step = kind.step
        new = "" if step.first_seconds == step.seconds else f" ({_seconds(step.first_seconds)} while prompts are new)"
        whole = "" if step.measured_rows == step.rows else f", measured with {step.measured_rows}"
        yield (
            f"  step      about {_between(step.seconds, step.most_seconds)}{new} by {step.estimator}, "
            f"{step.rows} rows of {step.tokens} tokens{whole}"
        )
    yield from _named("learners", kind.estimators, True)
    yield from _named("reuse", kind.policies, verbose)


def _named(title: str, found: Mapping[str, str], reasons: bool) -> Iterator[str]:
    """What goes, and what does not, with ``reasons``."""
    if found:
        yield f"  {title:<10}{', '.join(name for name, reason in found.items() if not reason) or 'none'}"
    for name, reason in found.items():
        if reason and reasons:
            yield f"            not {name}: {reason}"


def _size(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 2**10:,.1f} KiB"
