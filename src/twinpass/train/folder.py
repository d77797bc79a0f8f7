"""The folder of a run: where everything lies, and how a run begins, resumes and ends."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomli_w

from twinpass.core import Work
from twinpass.engine.base import Engine
from twinpass.errors import JournalError
from twinpass.perturb.noise import ALGORITHM
from twinpass.report.environment import commit, machine, peak_rss_bytes, versions
from twinpass.report.fidelity import Fidelity
from twinpass.report.files import write_json, write_text
from twinpass.report.listener import Listener, Listeners
from twinpass.report.metrics import Metrics, read_metrics
from twinpass.report.plots import draw_run
from twinpass.train.journal import Contents, History, Journal, read
from twinpass.train.spaces import Spaces
from twinpass.train.trainer import Plan, Trainer


@dataclass(frozen=True)
class RunFolder:
    """``config.toml``, ``journal.jsonl``, ``metrics.jsonl``, ``summary.json``, ``plots/``, and what was trained."""

    path: Path

    @property
    def journal(self) -> Path:
        """The list of updates, from which everything else can be rebuilt."""
        return self.path / "journal.jsonl"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.toml"

    @property
    def spaces(self) -> Spaces:
        """Directions that were fitted to the task."""
        return Spaces(self.path / "spaces")

    @property
    def metrics(self) -> Path:
        """What happened, a line an event."""
        return self.path / "metrics.jsonl"

    def require_new(self) -> None:
        """Refuse a folder that already holds a run.

        Raises:
            JournalError: it does.
        """
        if self.journal.exists():
            raise JournalError(
                f"{self.path} already holds a run: continue it with 'twinpass train --resume {self.path}', "
                "or choose another folder with --set run.out=FOLDER"
            )

    def begin(self, values: Mapping[str, Any], engine: Engine) -> Journal:
        """Write the resolved configuration and the journal's header."""
        self.require_new()
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.config, tomli_w.dumps(_without_none(values)))
        return Journal.create(self.journal, header(values, engine))

    def resume(self, values: Mapping[str, Any], engine: Engine) -> tuple[Journal, Contents]:
        """Continue the journal that is here.

        Raises:
            JournalError: it was written for another base model, noise or configuration, or it is damaged.
        """
        require_same(self.journal, read(self.journal).header, header(values, engine))
        return Journal.open(self.journal)

    def train(
        self, engine: Engine, plan: Plan, journal: Journal, records: Sequence[Mapping[str, Any]], listener: Listener
    ) -> dict[str, Any]:
        """Run the plan to its end and write summary, plots and weights; returns the summary."""
        history = History.of(records)
        evaluations = sum(record["kind"] == "evaluation" for record in records)
        with ExitStack() as stack:
            stack.callback(journal.close)
            metrics = stack.enter_context(closing(Metrics(self.metrics, history.draws, evaluations)))
            Trainer(engine, plan, journal, history, Listeners([metrics, listener]), self.spaces).run()
        weights = engine.save(self.path)
        draw_run(read_metrics(self.metrics), plan.objective.metric_name, self.path / "plots")
        return self._summary(engine, plan, history, weights)

    def _summary(self, engine: Engine, plan: Plan, history: History, weights: Path) -> dict[str, Any]:
        rows = read_metrics(self.metrics)
        steps = [row for row in rows if row["event"] == "step"]
        work = sum((Work(**row["token_layers"], reused=row["reused_by_source"]) for row in steps), Work())
        evaluations, fidelity = history.evaluations, Fidelity.measured(history.steps)
        prefixes = [step.observed.prefix for step in history.steps]
        accepted, offered = (sum(p.accepted for p in prefixes), sum(p.accepted + p.rejected for p in prefixes))
        return {
            "metric_name": plan.objective.metric_name,
            "base_metric": evaluations.get(0),
            "final_metric": evaluations.get(len(history.steps)),
            "steps": len(history.steps),
            "rollbacks": history.rollbacks,
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

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``, the mark of a finished run."""
        write_json(self.path / "summary.json", summary)


def header(values: Mapping[str, Any], engine: Engine) -> dict[str, Any]:
    """What a journal has to be replayed with."""
    config = json.loads(json.dumps(_without_none(values)))
    return {"base": engine.base_hash, "noise": ALGORITHM, "trained": engine.trained, "config": config}


def require_same(journal: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse to continue or replay a journal on other ground than it was written on; the device may be another.

    Raises:
        JournalError: naming what differs.
    """
    causes = {
        "base": "the base model is another one (its weights differ)",
        "noise": "it was written with another noise algorithm",
        "trained": "another number of weights is trained",
        "config": "config.toml was changed since",
    }
    for key, cause in causes.items():
        if _anywhere(found.get(key)) != _anywhere(expected[key]):
            raise JournalError(f"{journal} does not belong to this run: {cause}; restore what the run began with")


def _anywhere(value: Any) -> Any:
    """A configuration without [engine] device: a run may go on, or be replayed, on another one."""
    if not isinstance(value, Mapping) or not isinstance(engine := value.get("engine", {}), Mapping):
        return value
    rest = {key: setting for key, setting in engine.items() if key != "device"}
    return {**{key: own for key, own in value.items() if key != "engine"}, **({"engine": rest} if rest else {})}


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }
