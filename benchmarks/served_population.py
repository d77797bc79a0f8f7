"""How fast a population writes on SGLang, beside as many texts without lanes: ``python benchmarks/served_population.py --json FILE``.

Runs where SGLang is installed (``make bench-served-population``). Texts are greedy, as they have to be there; a step perturbs, loads its
adapters, writes and rewards. Both take turns on one engine, which has forgotten all prompts before each turn.
"""

import argparse
import statistics
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import sglang

from twinpass.bench.population import Size, base_writes, lanes_write, timed, writers
from twinpass.config.compose import build
from twinpass.config.load import load_config
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json

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
    """Seconds of a step's texts, and of as many of the base model."""
    sets = (f"trainable.kind={kind}", f"estimator.probes={size.lanes // 2}", f"optimizer.batch_size={size.prompts}")
    session = build(load_config(CONFIG, [*COMMON, *sets]))
    goal, examples = writers(session, size)
    lanes, base = list[float](), list[float]()
    with closing(session.engine), closing(goal):
        for step in range(repeats + 1):
            session.engine.forget()
            lanes.append(timed(partial(lanes_write, session.engine, goal, examples, size, step))[0])
            session.engine.forget()
            base.append(timed(partial(base_writes, session.engine, goal, examples, size))[0])
            print(f"{kind}, step {step}: {lanes[-1]:.1f} s, the base model {base[-1]:.1f} s", flush=True)
    own, bare = (statistics.median(each[1:]) for each in (lanes, base))
    return {
        "first_step_seconds": lanes[0],
        "seconds": own,
        "spread": [min(lanes[1:]), max(lanes[1:])],
        "tokens_per_second": size.total / own,
        "bare": {
            "seconds": bare,
            "spread": [min(base[1:]), max(base[1:])],
            "tokens_per_second": size.total / bare,
        },
        "of_bare": bare / own,
    }


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
