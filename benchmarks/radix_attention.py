"""What RadixAttention shares between perturbed lanes, and what a step costs there: ``python benchmarks/radix_attention.py --json FILE``.

Runs where SGLang is installed (``make bench-sglang``). A step loads its adapters, sends shared prefixes ahead, scores and updates.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import sglang

from twinpass.config.compose import build
from twinpass.config.load import load_config
from twinpass.core import StepReport, Work
from twinpass.engine.sglang import launch
from twinpass.engine.sglang.server import Server
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json
from twinpass.report.listener import Listener
from twinpass.train.header import header
from twinpass.train.journal import Journal
from twinpass.train.trainer import Trainer

EXAMPLES = Path(__file__).parent.parent / "examples"
COMMON = ["engine.kind=sglang", "reuse.policy=auto", "engine.noise=gaussian", "epsilon.value=1e-2", "run.out=unused"]
INPLACE = ["engine.perturbation=inplace", "engine.noise=binomial", "epsilon.value=1e-3", "trainable.kind=full"]
CASES = {
    "reviews, lora": ("reviews-mezo.toml", ["trainable.kind=lora"]),
    "reviews, activated": ("reviews-mezo.toml", []),
    "reviews with 8 demonstrations, lora": ("reviews-mezo.toml", ["trainable.kind=lora", "task.shots=8"]),
    "reviews with 8 demonstrations, activated": ("reviews-mezo.toml", ["task.shots=8"]),
    "reviews, all weights": ("reviews-full.toml", INPLACE),
    "reviews with 8 demonstrations, all weights": ("reviews-full.toml", [*INPLACE, "task.shots=8"]),
    "options of a 200-token context, all weights": ("options.toml", INPLACE),
    "options of a 200-token context, lora": ("options.toml", ["trainable.kind=lora"]),
    "options of a 200-token context, activated": ("options.toml", ["trainable.kind=activated"]),
}
BATCHES, EPOCHS = 2, 3
"""Minibatches that come round again; later epochs are what a long run sees."""


class TimedServer(Server):
    """Counts the seconds spent in each kind of call."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seconds = dict.fromkeys(("load", "unload", "command", "fill", "score"), 0.0)
        for name in self.seconds:
            setattr(self, name, self._timed(name, getattr(self, name)))

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - started

        return timed


@dataclass
class Steps(Listener):
    """Seconds and work of every step, by epoch."""

    seconds: list[float] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)

    def stepped(self, report: StepReport, seconds: float) -> None:
        self.seconds.append(seconds)
        self.work.append(report.work)


def run(file: str, settings: list[str]) -> dict[str, Any]:
    """Train some steps; what they took, and what was computed."""
    config = load_config(EXAMPLES / file, [*COMMON, *settings])
    with patch.object(launch, "Server", TimedServer):
        session = build(config)
    plan = session.plan
    optimizer = replace(plan.optimizer, steps=BATCHES * EPOCHS, warmup=0)
    plan = replace(
        plan, train=plan.train[: BATCHES * optimizer.batch_size], held_out=[], optimizer=optimizer, eval_every=0
    )
    steps = Steps()
    with closing(session.engine), tempfile.TemporaryDirectory() as folder:
        journal = Journal.create(Path(folder) / "journal.jsonl", header(config.values, session.engine))
        Trainer(session.engine, plan, journal, listener=steps).run()
        server: Any = session.engine._server  # type: ignore[attr-defined]
    first, later = sum(steps.work[:BATCHES], Work()), sum(steps.work[BATCHES:], Work())
    return {
        "batch_size": optimizer.batch_size,
        "first_step_seconds": statistics.median(steps.seconds[:BATCHES]),
        "step_seconds": statistics.median(steps.seconds[BATCHES:]),
        "spread": [min(steps.seconds[BATCHES:]), max(steps.seconds[BATCHES:])],
        "first_hit_rate": first.hit_rate,
        "hit_rate": later.hit_rate,
        "demand": later.demand // len(steps.work[BATCHES:]),
        "computed": later.computed // len(steps.work[BATCHES:]),
        "seconds_by_call": {name: seconds / len(steps.seconds) for name, seconds in server.seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    cases = {}
    for name, (file, settings) in CASES.items():
        cases[name] = run(file, settings)
        print(name, cases[name], flush=True)
    if args.json:
        facts = {"commit": commit(), "machine": machine(), "versions": {**versions(), "sglang": sglang.__version__}}
        write_json(args.json, {"cases": cases, **facts})


if __name__ == "__main__":
    main()
