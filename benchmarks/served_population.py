"""How fast a population writes on SGLang, beside as many texts without lanes: ``python benchmarks/served_population.py --json FILE``.

Runs where SGLang is installed (``make bench-served-population``). Texts are greedy, as they have to be there, and go on past the model's own end; a step
perturbs, loads its adapters, writes and rewards. Both take turns on one engine, which has forgotten all prompts before each turn, and so does the base model
with prompts of which no two begin alike, so that it reads as many as LoRA's lanes. Texts of one token take turns, too: what these take is what it takes to read prompts and to load adapters, and the rest is the rate once that is done.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import sglang

from twinpass.bench.population import EPS, Size, base_writes, lanes_write, timed, writers
from twinpass.config.compose import build
from twinpass.config.load import load_config
from twinpass.core import BASE, Lane, Probe
from twinpass.engine.base import Engine
from twinpass.objective.population import Population
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json
from twinpass.task.example import Example

CONFIG = Path(__file__).parent.parent / "examples" / "gsm8k.toml"
KINDS = ("activated", "lora")
COMMON = (
    "engine.kind=sglang",
    "generation.temperature=0.0",
    "task.samples=1",
    "estimator.kind=spsa",
    "optimizer.steps=1",
    "run.out=unused",
)


def measure(kind: str, size: Size, repeats: int) -> dict[str, Any]:
    """Seconds of a step's texts, and of as many of the base model.

    Raises:
        RuntimeError: a text is shorter than was asked for, so that rates would be of other texts.
    """
    sets = (f"trainable.kind={kind}", f"estimator.probes={size.lanes // 2}", f"optimizer.batch_size={size.prompts}")
    session = build(load_config(CONFIG, [*COMMON, *sets]))
    goal, examples = writers(session, size)
    engine, begun = session.engine, replace(size, tokens=1)
    of_begun = replace(goal, sampling=replace(goal.sampling, max_tokens=1))
    turns: dict[str, Callable[[int], Any]] = {
        "lanes": partial(lanes_write, engine, goal, examples, size),
        "base": lambda step: base_writes(engine, goal, examples, size),
        "apart": lambda step: base_writes(engine, goal, examples, size, apart=True),
        "lanes begun": partial(lanes_write, engine, of_begun, examples, begun),
        "base begun": lambda step: base_writes(engine, of_begun, examples, begun),
    }
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    with closing(engine), closing(goal):
        require_whole(engine, goal, examples, size)
        for step in range(repeats + 1):
            for name, turn in turns.items():
                engine.forget()
                seconds[name].append(timed(partial(turn, step))[0])
            print(
                f"{kind}, step {step}: {', '.join(f'{name} {took[-1]:.1f} s' for name, took in seconds.items())}",
                flush=True,
            )
    own, bare, apart, own_begun, bare_begun = (statistics.median(took[1:]) for took in seconds.values())
    return {
        "first_step_seconds": seconds["lanes"][0],
        "seconds": own,
        "spread": spread(seconds["lanes"]),
        "begun_seconds": own_begun,
        "tokens_per_second": size.total / own,
        "bare": {
            "seconds": bare,
            "spread": spread(seconds["base"]),
            "begun_seconds": bare_begun,
            "tokens_per_second": size.total / bare,
        },
        "apart": {
            "seconds": apart,
            "spread": spread(seconds["apart"]),
            "tokens_per_second": size.total / apart,
        },
        "of_bare": bare / own,
        "of_apart": apart / own,
        "of_bare_prompts_read": (bare - bare_begun) / (own - own_begun),
    }


def spread(seconds: Sequence[float]) -> list[float]:
    """Of all steps but the first."""
    return [min(seconds[1:]), max(seconds[1:])]


def require_whole(engine: Engine, goal: Population, examples: Sequence[Example], size: Size) -> None:
    """Both sides write as many tokens as are counted."""
    lanes = [BASE, Lane(Probe(1), 1, EPS)]
    written = goal.write(engine, examples, lanes, samples=1).written.values
    lengths = {len(text.tokens) for own in written for text in own}
    if lengths != {size.tokens}:
        raise RuntimeError(f"texts of {size.tokens} tokens were asked for, and some have {sorted(lengths)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    size = Size(args.lanes, args.prompts, args.tokens)
    found = {kind: measure(kind, size, args.repeats) for kind in KINDS}
    about = {"commit": commit(), "machine": machine(), "versions": {**versions(), "sglang": sglang.__version__}}
    write_json(args.json, {**asdict(size), "repeats": args.repeats, **found, **about})


if __name__ == "__main__":
    main()
