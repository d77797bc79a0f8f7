"""What examples/cheerful.toml learns, on several seeds: ``python benchmarks/rewards.py --json FILE``.

Of the base model and of what was trained: mean VADER score, distinct-2 (distinct pairs of neighbouring words among all) and perplexity
under the base model, all of the same held-out prompts, with the same random numbers.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from demo import described
from rich.console import Console

from twinpass.cli.main import main as twinpass
from twinpass.cli.replay import restore
from twinpass.cli.train import LEARNED_NOTHING
from twinpass.core import BASE, Continuation, Request
from twinpass.engine.base import Engine
from twinpass.objective.population import Population
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json
from twinpass.report.metrics import read_metrics
from twinpass.task.example import Example
from twinpass.train.plan import TrainingPlan

CONFIG = Path(__file__).parent.parent / "examples" / "cheerful.toml"
SEEDS = (1, 2, 3)


def run(config: Path, seed: int, folder: Path, sets: Sequence[str]) -> dict[str, Any]:
    """Train once; what was measured. A setting is ``SECTION.KEY=VALUE``."""
    started = time.perf_counter()
    chosen = [part for each in (f"run.out={folder}", f"run.seed={seed}", *sets) for part in ("--set", each)]
    if twinpass(["train", str(config), *chosen, "--json"]) not in (0, LEARNED_NOTHING):
        raise SystemExit(f"seed {seed} did not train")
    seconds = time.perf_counter() - started
    summary = json.loads((folder / "summary.json").read_text())
    course, trained = [], 0.0
    for row in read_metrics(folder / "metrics.jsonl"):
        if row["event"] == "step":
            trained += row["seconds"]
        elif row["event"] == "evaluation":
            known = {"cheerful": row["rewards/cheerful/mean"], "reward": row["metric"]}
            course.append({"step": row["step"], "train_seconds": trained, **known})
    session, step = restore(folder, None, Console(stderr=True))
    with closing(session.engine):
        texts = written(session.engine, session.plan)
        session.engine.reset()
        base = written(session.engine, session.plan)
        found = {
            name: measured(session.engine, session.plan.held_out, own)
            for name, own in (("base", base), ("kept", texts))
        }
    keys = ("train_seconds", "evaluation_seconds", "steps", "kept_step", "rollbacks", "token_layers", "peak_rss_bytes")
    return {
        "seed": seed,
        "step": step,
        "course": course,
        **found,
        "gained": found["kept"]["cheerful"] - found["base"]["cheerful"],
        "distinct2_left": found["kept"]["distinct2"] / found["base"]["distinct2"],
        "command_seconds": seconds,
        **{key: summary[key] for key in keys},
    }


def written(engine: Engine, plan: TrainingPlan) -> list[list[Continuation]]:
    """Texts by held-out prompt, sampled under the weights as they stand, however it was written in training."""
    assert isinstance(plan.objective, Population)
    goal = replace(plan.objective, sampling=replace(plan.objective.sampling, temperature=1.0))
    return goal.write(engine, plan.held_out, [BASE], plan.exam()).texts[0]


def measured(base: Engine, examples: Sequence[Example], texts: Sequence[Sequence[Continuation]]) -> dict[str, Any]:
    """Of texts by prompt; ``base`` is an engine at theta_0."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyser, flat = SentimentIntensityAnalyzer(), [text for own in texts for text in own]
    words = [text.text.lower().split() for text in flat]
    pairs = [pair for own in words for pair in pairwise(own)]
    requests = [
        Request(example.prompt, text.tokens, example.suffix_start)
        for example, own in zip(examples, texts, strict=True)
        for text in own
    ]
    scores = np.concatenate(base.score(requests, [BASE]).values[0])
    return {
        "cheerful": float(np.mean([analyser.polarity_scores(text.text)["compound"] for text in flat])),
        "distinct2": len(set(pairs)) / len(pairs),
        "perplexity_under_base": float(np.exp(-scores.mean())),
        "texts": len(flat),
        "samples": [own[0].text for own in texts[:6]],
    }


def config_of(path: Path) -> dict[str, Any]:
    """A configuration for a result, with names for its files."""
    config = described(path)
    config["task"]["rewards"] = [Path(name).name for name in config["task"]["rewards"]]
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rewards-"))
    about = {
        "config": config_of(CONFIG),
        "set": args.set,
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }
    runs: list[dict[str, Any]] = []
    try:
        for seed in args.seeds:
            runs.append(run(CONFIG, seed, folder / f"seed-{seed}", args.set))
            write_json(args.json, {**about, "runs": runs})
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
