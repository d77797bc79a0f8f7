"""A run from its beginning, or from where it was broken off, to its end: steps, weights, plots and what there is to say of it."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from twinpass.core import Work
from twinpass.engine.base import Engine
from twinpass.report.environment import commit, machine, peak_rss_bytes, versions
from twinpass.report.fidelity import Fidelity
from twinpass.report.files import storing
from twinpass.report.listener import Listener, Listeners
from twinpass.report.metrics import Metrics, read_metrics
from twinpass.report.plots import draw_run
from twinpass.report.samples import Samples
from twinpass.train.folder import RunFolder, save_weights
from twinpass.train.history import History, Keep
from twinpass.train.journal import Journal
from twinpass.train.plan import TrainingPlan
from twinpass.train.trainer import Trainer


def carry_out(
    folder: RunFolder,
    engine: Engine,
    plan: TrainingPlan,
    journal: Journal,
    records: Sequence[Mapping[str, Any]],
    listener: Listener,
    accepted: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run the plan to its end and write summary, plots and weights; returns the summary. ``accepted`` is what a resumed run finds other than before."""
    history = History.of(records)
    evaluations = sum(record["kind"] == "evaluation" for record in records)
    with closing(journal):
        with closing(Metrics(folder.metrics, history.draws, evaluations)) as metrics:
            told = Listeners([metrics, Samples(folder.path / "samples"), listener])
            trainer = Trainer(engine, plan, journal, history, told, accepted=accepted)
            trainer.run()
        if (kept := history.kept(plan.keep)) < len(history.steps):
            trainer.return_to(kept)
        journal.require_there()
        weights = save_weights(engine, folder.path)
        plots = folder.path / "plots"
        with storing(plots):
            draw_run(read_metrics(folder.metrics), plan.objective.metric_name, plots)
        journal.require_there()
        return _summary(folder, engine, plan, history, weights)


def _summary(folder: RunFolder, engine: Engine, plan: TrainingPlan, history: History, weights: Path) -> dict[str, Any]:
    rows = read_metrics(folder.metrics)
    steps = [row for row in rows if row["event"] == "step"]
    work = sum((Work(**row["token_layers"], reused=row["reused_by_source"]) for row in steps), Work())
    evaluations, fidelity = history.evaluations, Fidelity.measured(history.steps)
    prefixes = [step.observed.prefix for step in history.steps]
    accepted, offered = (sum(p.accepted for p in prefixes), sum(p.accepted + p.rejected for p in prefixes))
    return {
        "metric_name": plan.objective.metric_name,
        "base_metric": evaluations.get(0),
        "final_metric": evaluations.get(len(history.steps)),
        "kept_metric": evaluations.get(history.kept(plan.keep)),
        "kept_step": history.kept(plan.keep),
        "learned": learned(history, plan.keep),
        "fitted": plan.fitting is not None,
        "steps": len(history.steps),
        "steps_planned": plan.optimizer.steps,
        "settled": len(history.steps) < plan.optimizer.steps and plan.settled(history),
        "rollbacks": history.rollbacks,
        "lr_scale": plan.slowed(history),
        "accepted_changes": sorted(history.changed),
        "trained_parameters": engine.trained,
        "held_out": len(plan.held_out),
        "train_seconds": sum(row["seconds"] for row in steps),
        "evaluation_seconds": sum(row["seconds"] for row in rows if row["event"] == "evaluation"),
        "hit_rate": work.hit_rate,
        "token_layers": {"demand": work.demand, "computed": work.computed},
        "reused_by_source": dict(work.reused),
        "fidelity": None if fidelity is None else asdict(fidelity),
        "accepted_hit_rate": accepted / offered if offered else None,
        "kv_bytes": steps[-1]["kv_bytes"] if steps else None,
        "peak_rss_bytes": peak_rss_bytes(),
        "weights": str(weights),
        "versions": versions(),
        "machine": machine(),
        "commit": commit(),
    }


def learned(history: History, keep: Keep) -> bool | None:
    """Whether what a run leaves is better than what it began with: in the held-out metric, or at the same metric in the loss.

    None where nothing was evaluated.
    """
    kept = history.kept(keep)
    if 0 not in history.evaluations or kept not in history.evaluations:
        return None
    before, after = history.evaluations[0], history.evaluations[kept]
    if before != after or not {0, kept} <= history.samples.keys():
        return after > before
    return history.samples[kept].loss < history.samples[0].loss
