"""The folder of a run: where everything lies, and how a run begins, resumes and ends."""

import json
import shutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w

from twinpass.core import Work
from twinpass.engine.base import Engine
from twinpass.errors import ConfigError, JournalError
from twinpass.perturb.noise import ALGORITHM
from twinpass.report.environment import commit, machine, peak_rss_bytes, versions
from twinpass.report.fidelity import Fidelity
from twinpass.report.files import put, reason, storing, sync_folder, write_json, write_text
from twinpass.report.listener import Listener, Listeners
from twinpass.report.metrics import Metrics, read_metrics
from twinpass.report.plots import draw_run
from twinpass.report.samples import Samples
from twinpass.train.earlier import current
from twinpass.train.history import History, Keep
from twinpass.train.journal import INSTEAD, Contents, Journal, read, require_new, unbegun
from twinpass.train.lock import hold
from twinpass.train.plan import TrainingPlan
from twinpass.train.spaces import Spaces
from twinpass.train.trainer import Trainer

FINETUNE = "finetune"
"""The section of a configuration that twinpass.finetune wrote."""


@dataclass(frozen=True)
class RunFolder:
    """``config.toml``, ``journal.jsonl``, ``metrics.jsonl``, ``summary.json``, ``plots/``, and what was trained.

    The rest are words for messages: what names the folder, what to do where it holds a run, what accepts other ground.
    """

    path: Path
    named: str = "run.out"
    instead: str = INSTEAD
    accepting: str = "--accept-changes"

    @property
    def journal(self) -> Path:
        """The list of updates, from which everything else can be rebuilt."""
        return self.path / "journal.jsonl"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.toml"

    def settings(self) -> dict[str, Any]:
        """What the configuration says, as it is written now.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            return current(tomllib.loads(self.config.read_text(encoding="utf-8")))
        except OSError as error:
            raise ConfigError(str(self.config), [f"cannot be read: {reason(error)}"]) from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(str(self.config), [f"not valid TOML: {error}"]) from error

    @property
    def spaces(self) -> Spaces:
        """Directions that were fitted to the task."""
        return Spaces.of(self.path)

    @property
    def metrics(self) -> Path:
        """What happened, a line an event."""
        return self.path / "metrics.jsonl"

    @contextmanager
    def claim(self, *, new: bool) -> Iterator[None]:
        """Be the only process that writes here. A folder that is made for it and stays empty goes again.

        Raises:
            BusyError: another process is.
            ConfigError: the folder cannot be made.
            JournalError: a ``new`` run would find another one here; or there is none to go on with.
        """
        if not new and not self.journal.exists():
            raise JournalError(f"{self.journal}: there is no journal here; give the folder of a run")
        with making(self.path, self.named), hold(self.path):
            if new:
                require_new(self.path, self.instead)
            yield

    def begin(self, values: Mapping[str, Any], engine: Engine, ground: Mapping[str, str] | None = None) -> Journal:
        """Write the resolved configuration and the journal's header; the folder has to be claimed."""
        write_text(self.config, tomli_w.dumps(_without_none(values)))
        if self.journal.exists() and unbegun(self.journal):
            self.journal.unlink()
        return Journal.create(self.journal, header(values, engine, ground))

    def resume(
        self, values: Mapping[str, Any], engine: Engine, ground: Mapping[str, str], *, accept: bool = False
    ) -> tuple[Journal, Contents]:
        """Continue the journal that is here; with ``accept`` on other ``ground`` than it stands on, which it then says.

        Raises:
            JournalError: it was written for another base model, noise or configuration, or on other ground, or it is damaged.
        """
        found = read(self.journal)
        require_same(self.journal, found.header, header(values, engine))
        changed = changes({**found.header.get("ground", {}), **History.of(found.records).changed}, ground)
        if changed and not accept:
            raise JournalError(
                f"{self.journal} does not belong to this run: {'; '.join(changed.values())}. Restore what it began with, "
                f"or go on with {self.accepting}, which goes into the journal; the run's result is then of both"
            )
        journal, contents = Journal.open(self.journal)
        if not changed:
            return journal, contents
        record = {
            "kind": "changes",
            "step": len(History.of(contents.records).steps),
            "ground": {k: ground[k] for k in changed},
        }
        journal.append(record)
        return journal, replace(contents, records=(*contents.records, record))

    def train(
        self,
        engine: Engine,
        plan: TrainingPlan,
        journal: Journal,
        records: Sequence[Mapping[str, Any]],
        listener: Listener,
    ) -> dict[str, Any]:
        """Run the plan to its end and write summary, plots and weights; returns the summary."""
        history = History.of(records)
        evaluations = sum(record["kind"] == "evaluation" for record in records)
        with closing(journal):
            with closing(Metrics(self.metrics, history.draws, evaluations)) as metrics:
                told = Listeners([metrics, Samples(self.path / "samples"), listener])
                trainer = Trainer(engine, plan, journal, history, told)
                trainer.run()
            if (kept := history.kept(plan.keep)) < len(history.steps):
                trainer.return_to(kept)
            journal.require_there()
            weights = save_weights(engine, self.path)
            plots = self.path / "plots"
            with storing(plots):
                draw_run(read_metrics(self.metrics), plan.objective.metric_name, plots)
            journal.require_there()
            return self._summary(engine, plan, history, weights)

    def _summary(self, engine: Engine, plan: TrainingPlan, history: History, weights: Path) -> dict[str, Any]:
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
            "kept_metric": evaluations.get(history.kept(plan.keep)),
            "kept_step": history.kept(plan.keep),
            "learned": learned(history, plan.keep),
            "fitted": plan.fitting is not None,
            "steps": len(history.steps),
            "steps_planned": plan.optimizer.steps,
            "settled": len(history.steps) < plan.optimizer.steps and plan.settled(history),
            "rollbacks": history.rollbacks,
            "lr_scale": history.lr_scale,
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

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``, the mark of a finished run."""
        write_json(self.path / "summary.json", summary)


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


@contextmanager
def making(folder: Path, named: str) -> Iterator[None]:
    """Make a folder, with those above it; what is empty of them at the end goes again.

    Raises:
        ConfigError: it cannot be made; ``named`` is the setting it comes from.
    """
    made: list[Path] = []
    try:
        above = folder
        while not above.exists():
            made.append(above)
            above = above.parent
        folder.mkdir(parents=True, exist_ok=True)
        for each in made:
            sync_folder(each.parent)
    except (OSError, ValueError) as error:
        raise ConfigError(named, [f"{folder} cannot be made: {reason(error)}"]) from error
    try:
        yield
    finally:
        for each in made:
            with suppress(OSError):
                each.rmdir()


def save_weights(engine: Engine, folder: Path) -> Path:
    """Write what was trained into ``folder``, all of it or nothing; returns the folder inside."""
    part = folder / ".weights.part"
    with storing(folder):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            written = engine.save(part)
            return put(written, folder / written.name)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def header(values: Mapping[str, Any], engine: Engine, ground: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a journal has to be replayed with; ``ground`` is what it has to be resumed on, besides (see :func:`changes`)."""
    config = json.loads(json.dumps(_without_none(values)))
    below = {} if ground is None else {"ground": dict(ground)}
    return {"base": engine.base_hash, "noise": ALGORITHM, "trained": engine.trained, "config": config, **below}


GROUND = {
    "train": "the training rows are others",
    "held_out": "the held-out rows are others",
    "template": "the template is another one",
    "tokenizer": "the tokenizer is another one",
    "examples": "rows are tokenised otherwise",
    "source": "twinpass itself is another version",
    "rewards": "a reward function was changed",
}
"""What a run stands on besides its model and configuration; other names are those of packages."""


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """What is no longer as it was, in words by name; a journal that does not say how it was counts as changed."""
    found = {}
    for name in now:
        if before.get(name) != now[name]:
            known = GROUND.get(name) or f"{name} was {before.get(name, 'not named')}, now {now[name]}"
            found[name] = known if name in before else f"it does not say what it stood on ({name})"
    return found


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
    """A configuration without [engine] device and where a model came from: a run may go on, or be replayed, elsewhere, or by a later version."""
    if not isinstance(value, Mapping) or not isinstance(value.get("engine", {}), Mapping):
        return value
    value = {key: own for key, own in current(value).items() if key != FINETUNE}
    engine = value.get("engine", {})
    rest = {key: setting for key, setting in engine.items() if key != "device"}
    return {**{key: own for key, own in value.items() if key != "engine"}, **({"engine": rest} if rest else {})}


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }
