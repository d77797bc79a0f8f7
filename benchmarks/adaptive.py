"""Adaptive eps on the real model: where it goes from far too large and far too small, against a sweep.

``python benchmarks/adaptive.py --json FILE --plot FILE``. All weights are trained on reviews, in float32 and in bfloat16, exactly and with
reflected prefixes, and in float32 with products in bfloat16. The error of g at the eps that was reached is compared with the best of a sweep, on the same probes of one batch, against
forward-mode derivatives in float32 of the same weights.
"""

import argparse
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twinpass.analysis.sweep import Bench, derivatives
from twinpass.config.compose import Session, build_embedded
from twinpass.config.load import load_config
from twinpass.config.schema import Config
from twinpass.core import StepReport
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.model.load import load
from twinpass.model.trainable import Full
from twinpass.objective.base import scored
from twinpass.report.environment import commit, machine, versions
from twinpass.report.fidelity import Fidelity
from twinpass.report.files import write_json
from twinpass.report.plots import axes_of
from twinpass.reuse.plan import Situation
from twinpass.schedule.adaptive import AdaptiveEpsilon
from twinpass.train.batches import batch
from twinpass.train.header import header
from twinpass.train.journal import Journal
from twinpass.train.step import Draw, Method
from twinpass.train.step import measure as step
from twinpass.train.trainer import Trainer

CONFIG = Path(__file__).parent.parent / "examples" / "reviews-full.toml"
STEPS, PROBES, BATCH = 30, 16, 4

STARTS = (1e-1, 1e-6)
SWEEP = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
PRODUCTS = "bfloat16 products"
CASES: Mapping[str, Mapping[str, float | None]] = {
    PRODUCTS: {"exact": None},
    "bfloat16": {"exact": None, "reflected": 0.9, "reflected, tolerance 0.2": 0.2},
    "float32": {"exact": None, "reflected": 0.2},
}
"""By dtype, policies and their tolerance; the first has float32 weights. Rounding alone moves keys and values by 2.5% in bfloat16; at 0.2, the default, no reflection passes."""
SETTINGS = [
    "optimizer.schedule=constant",
    f"optimizer.batch_size={BATCH}",
    f"optimizer.steps={STEPS}",
    "engine.chunk_rows=8192",
]
SETTINGS += ["run.eval_every=0", "run.out=unused"]
REFLECTED = ["reuse.policy=reflected", "estimator.probes=2"]


def settings(dtype: str, tolerance: float | None) -> Config:
    own = [] if tolerance is None else [*REFLECTED, f"reuse.tolerance={tolerance}"]
    set_dtype = "engine.compute_dtype=bfloat16" if dtype == PRODUCTS else f"model.dtype={dtype}"
    return load_config(CONFIG, [*SETTINGS, set_dtype, *own])


def course(session: Session[TorchEngine], config: Config, start: float) -> list[dict[str, Any]]:
    """Train from one eps; eps and accepted hit rate by step."""
    plan = replace(session.plan, epsilon=AdaptiveEpsilon(start=start), held_out=[])
    folder = Path(tempfile.mkdtemp())
    journal = Journal.create(folder / "journal.jsonl", header(config.values, session.engine))
    history = Trainer(session.engine, plan, journal).run()
    journal.close()
    shutil.rmtree(folder)
    session.engine.reset()
    return [
        {
            "step": step.step,
            "eps": step.estimate.eps,
            "accepted_hit_rate": step.observed.prefix.hit_rate,
            "trial": bool(step.observed.ladder),
        }
        for step in history.steps
    ]


def reference(session: Session[TorchEngine], dtype: str, probes: int) -> list[float]:
    """Directional derivatives of the weights in this dtype, differentiated in float32."""
    model: Any = load("smollm2", "bfloat16" if dtype == "bfloat16" else "float32")[0]
    model.to(torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return derivatives(bench(session, TorchEngine(model, Full(), noise="binomial"), probes))


def bench(session: Session[TorchEngine], engine: TorchEngine, probes: int) -> Bench:
    plan = session.plan
    return Bench(engine, scored(plan.objective), batch(plan.train, BATCH, plan.seed, 0), 7, probes)


def error_at(session: Session[TorchEngine], eps: float, derivative: Sequence[float]) -> float:
    """The relative error of g at one eps, of steps that reflect what was found acceptable in the first of them."""
    plan, own = session.plan, bench(session, session.engine, len(derivative))
    history, gradients = list[StepReport](), list[float]()
    for probes in own.groups(plan.estimator.probes):
        situation = Situation(session.engine.layers, history, coin=1.0)
        method = Method(plan.estimator, plan.objective, plan.planner)
        report = step(session.engine, method, Draw(len(history), own.examples, probes, eps, 0.0), situation)
        history.append(report)
        gradients += report.observed.approximate or report.estimate.gradients
    return Fidelity.of(gradients, derivative).relative_error


def measure(
    dtype: str, policy: str, tolerance: float | None, derivative: Sequence[float] | None, probes: int
) -> tuple[dict[str, Any], list[float]]:
    config = settings(dtype, tolerance)
    session = build_embedded(config)
    derivative = derivative or reference(session, dtype, probes)
    sweep = [{"eps": eps, "error": error_at(session, eps, derivative)} for eps in SWEEP]
    best = min(sweep, key=lambda point: point["error"])
    runs = []
    for start in STARTS:
        steps = course(session, config, start)
        reached = steps[-1]["eps"]
        error = error_at(session, reached, derivative)
        accepted = [step["accepted_hit_rate"] for step in steps if step["accepted_hit_rate"] is not None]
        within = next(
            (s["step"] for s in steps if all(0.5 <= t["eps"] / reached <= 2 for t in steps[s["step"] :])), STEPS
        )
        runs.append(
            {
                "start": start,
                "reached": reached,
                "error": error,
                "error_over_best": error / best["error"],
                "settled_at_step": within,
                "accepted_hit_rate_second_half": float(np.mean(accepted[len(accepted) // 2 :])) if accepted else None,
                "steps": steps,
            }
        )
        print(
            dtype,
            policy,
            start,
            "->",
            reached,
            error,
            "best",
            best,
            runs[-1]["accepted_hit_rate_second_half"],
            flush=True,
        )
    found = {"dtype": dtype, "policy": policy, "tolerance": tolerance, "sweep": sweep, "best": best, "runs": runs}
    return found, list(derivative)


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Eps by step, from both sides."""
    with axes_of(path) as axes:
        for result, colour in zip(
            results, ("#2b6cb0", "#2f855a", "#718096", "#dd6b20", "#b83280", "#805ad5"), strict=False
        ):
            for i, one in enumerate(result["runs"]):
                label = f"{result['dtype']}, {result['policy']}" if not i else None
                axes.plot(
                    [s["step"] for s in one["steps"]], [s["eps"] for s in one["steps"]], color=colour, label=label
                )
            axes.axhline(result["best"]["eps"], color=colour, linewidth=1, linestyle=":")
        axes.set(xlabel="step", ylabel="eps", yscale="log", title="Adaptive eps, and the best of a sweep (dotted)")
        axes.legend(loc="upper right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--plot", type=Path, help="where to draw eps by step")
    parser.add_argument("--dtypes", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--policies", nargs="+", help="default: all")
    parser.add_argument(
        "--probes", type=int, default=PROBES, help=f"directions that errors are taken over (default: {PROBES})"
    )
    args = parser.parse_args()
    results = []
    for dtype in args.dtypes:
        derivative: list[float] | None = None
        for policy, tolerance in CASES[dtype].items():
            if args.policies and policy not in args.policies:
                continue
            result, derivative = measure(dtype, policy, tolerance, derivative, args.probes)
            results.append(result)
            if args.json:
                facts = {"commit": commit(), "machine": machine(), "versions": versions()}
                write_json(args.json, {"batch": BATCH, "probes": args.probes, "results": results, **facts})
    if args.plot:
        draw(results, args.plot)


if __name__ == "__main__":
    main()
