"""Ways to learn from rewards, in equal seconds: ``python benchmarks/reward_learners.py --json FILE``.

Every way trains the adapters of examples/cheerful.toml for so many seconds, evaluations included, on several seeds. What is kept is
measured as benchmarks/rewards.py does it: all ways by sampled texts, whatever they learned from.
"""

import argparse
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards import CONFIG, SEEDS, config_of, run

from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json

FED_BACK = (
    "trainable.kind=lora",
    'trainable.targets=["o_proj", "down_proj"]',
    "trainable.first=18",
    "estimator.kind=feedback",
    "optimizer.kind=adamw",
    "optimizer.lr=4e-3",
    "optimizer.steps=200",
    "optimizer.batch_size=2",
)
TWO_SIDED = ("trainable.kind=lora", "estimator.kind=spsa", "optimizer.steps=200")
ONE_SIDED = ("trainable.kind=lora", "estimator.kind=one_sided", "optimizer.steps=200")
GREEDY = ("generation.temperature=0.0",)
WAYS: Mapping[str, Sequence[str]] = {
    "exact gradient, beta 0.04": ("task.beta=0.04",),
    "exact gradient, beta 0.1": ("task.beta=0.1",),
    "feedback, beta 0.04": (*FED_BACK, "task.beta=0.04"),
    "two-sided": TWO_SIDED,
    "one-sided": ONE_SIDED,
    "two-sided, greedy": (*TWO_SIDED, *GREEDY),
    "one-sided, greedy": (*ONE_SIDED, *GREEDY),
}
"""What each way sets; all else is left to the defaults. What is committed was measured when 0.04 was the default beta."""
SECONDS = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seconds", type=int, default=SECONDS)
    args = parser.parse_args()
    about = {
        "config": config_of(CONFIG),
        "seconds": args.seconds,
        "ways": {name: list(WAYS[name]) for name in args.ways},
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }
    folder = Path(tempfile.mkdtemp(prefix="reward-learners-"))
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in args.ways}
    try:
        for seed in args.seeds:
            for number, name in enumerate(args.ways):
                sets = (*WAYS[name], f"run.max_seconds={args.seconds}", "run.eval_every=12")
                found[name].append(run(CONFIG, seed, folder / f"{number}-{seed}", sets))
                write_json(args.json, {**about, "runs": found})
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
