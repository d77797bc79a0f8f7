"""The tools beside plain SGD along probes, at equal seconds: ``python benchmarks/toolbox.py FILE --json FILE``.

An activated adapter learns movie reviews and TREC's questions (FILE is its ``train.txt``), by every method on three seeds, at a learning rate that does
not fall. On reviews and the first seed each also runs at a third of its rate and at three times it. Seconds are those of steps but the first; after each third of them held-out rows are
scored. The prompts' keys and values are computed once for a task, and read from disk by all its runs. ``--tasks``, ``--methods`` and ``--seeds`` measure a part; other runs in the result stay.
"""

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fixed_inputs import FixedInputs, principal
from race import KINDS
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinpass.bench.race import Finished
from twinpass.config.compose import Base, Material, Recipe, Session, compose
from twinpass.config.engines import TorchSettings
from twinpass.config.tasks import ChoiceTask
from twinpass.core import BASE, Evaluation, StepReport
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import DivergedError
from twinpass.estimate.base import Estimator
from twinpass.estimate.gauss_newton import GaussNewton
from twinpass.estimate.line import LineSearch
from twinpass.estimate.one_sided import OneSided
from twinpass.estimate.spsa import Spsa
from twinpass.model.load import load
from twinpass.model.trainable import Activated, Trainable
from twinpass.objective.base import scored
from twinpass.objective.goal import FEW, portions
from twinpass.perturb.noise import Distribution
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json
from twinpass.report.listener import Listener
from twinpass.reuse.activated import ActivatedReuse
from twinpass.schedule.epsilon import ConstantEpsilon
from twinpass.steps import Rollback
from twinpass.task.sources.read import read_objects
from twinpass.train.header import header
from twinpass.train.journal import Journal
from twinpass.train.normalised import Normalised
from twinpass.train.optimizer import Optimizer, Sgd
from twinpass.train.sign import Sign
from twinpass.train.trainer import Trainer

DATA = Path(__file__).parent.parent / "examples" / "data"
SEEDS = (1, 2, 3)
FACTORS = (1 / 3, 1.0, 3.0)
PARTS = 3
"""Evaluations of a run, at equal seconds from each other."""
MANY = 10**6
REVIEWS = {
    "prompt": "Review: {text}\n",
    "suffix": "Sentiment:",
    "options": [" terrible", " great"],
    "labels": ["negative", "positive"],
}


@dataclass(frozen=True)
class Tool:
    """A method and its learning rate. ``inputs``: what an adapter reads of a module's input, if that stays."""

    optimizer: type[Optimizer]
    lr: float
    estimator: Estimator = field(default_factory=Spsa)
    inputs: str = ""
    noise: Distribution = "gaussian"


METHODS: Mapping[str, Tool] = {
    "sgd": Tool(Sgd, 4e-3),
    "sign": Tool(Sign, 1.0),
    "normalised": Tool(Normalised, 1.0),
    "line": Tool(Sgd, 1.0, LineSearch()),
    "one-sided, 4 probes": Tool(Sgd, 4e-3, OneSided(4)),
    "FZOO, 4 probes": Tool(Sgd, 4e-3, OneSided(4, normalise=True), noise="rademacher"),
    "Gauss-Newton, 4 probes": Tool(Sgd, 1.0, GaussNewton(4)),
    "random inputs": Tool(Sgd, 4e-3, inputs="random"),
    "principal inputs": Tool(Sgd, 4e-4, inputs="principal"),
}
"""``random inputs`` is LOZO's z (arXiv 2410.07698) whose V is never drawn again, ``principal inputs`` takes V from activations once, as AGZO (2601.17261) does in each step."""


@dataclass
class Course(Listener):
    """Has held-out rows scored whenever a part of ``limit`` seconds of steps is over, and ends the run after the last.

    The first step is not counted: code and weights are made ready in it.
    """

    limit: float
    score: Callable[[int], Evaluation]
    points: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    steps: int = 0
    rollbacks: int = 0
    begun: bool = False

    def stepped(self, report: StepReport, seconds: float) -> None:
        self.seconds, self.steps = self.seconds + (seconds if self.begun else 0.0), report.step + 1
        self.begun = True
        if self.seconds < self.limit * (len(self.points) + 1) / PARTS:
            return
        found = self.score(self.steps)
        point = {"step": self.steps, "seconds": self.seconds, "metric": found.metric, "loss": found.loss}
        passed = int(PARTS * min(1.0, self.seconds / self.limit) + 1e-9)
        self.points += [point] * (passed - len(self.points))
        if len(self.points) == PARTS:
            raise Finished

    def rolled_back(self, step: int, rollback: Rollback, lr_scale: float) -> None:
        self.rollbacks += 1


@dataclass(frozen=True)
class Workload:
    """A task with its rows, the model, and where keys and values of its prompts and principal inputs lie."""

    task: ChoiceTask
    train: Sequence[Mapping[str, Any]]
    held_out: Sequence[Mapping[str, Any]]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path

    def session(self, tool: Tool, lr: float, seed: int) -> Session[TorchEngine]:
        """An engine at its beginning, and the plan."""
        trainable: Trainable = Activated()
        if tool.inputs:
            file = str(self.folder / "inputs.safetensors") if tool.inputs == "principal" else ""
            trainable = FixedInputs(file=file)
        optimizer = tool.optimizer(lr=lr, steps=MANY, schedule="constant")
        reuse = ActivatedReuse(budget=2**31, spill=str(self.folder / "kept"))
        recipe = Recipe(trainable, tool.estimator, optimizer, ConstantEpsilon(1e-2), reuse, seed, 0)
        rows = [list(self.task.within(read_objects(part, name))) for part, name in self._parts()]
        base = Base(self.model, self.tokenizer, "", "float32", lambda: dict(self.model.named_parameters()))
        engine = TorchSettings(device="cpu", noise=tool.noise)
        return compose(recipe, Material(self.task, None, rows[0], rows[1]), base, engine.start)

    def _parts(self) -> Sequence[tuple[Any, Any]]:
        return ((self.train, "train"), (self.held_out, "held_out"))

    def prepare(self, *, inputs: bool) -> float:
        """Compute what all runs read: keys and values of all prompts and, if asked for, principal inputs; the metric before training."""
        session = self.session(METHODS["sgd"], 1.0, 0)
        plan, engine = session.plan, session.engine
        for part in portions(plan.train, FEW):
            engine.score(scored(plan.objective).requests(part), [BASE])
        before = plan.objective.evaluate(engine, plan.held_out, at=plan.exam()).metric
        engine.close()
        if inputs:
            principal(self.model, [example.prompt for example in plan.train], self.folder / "inputs.safetensors")
        return before


def run(workload: Workload, tool: Tool, lr: float, seed: int, seconds: float, before: float) -> dict[str, Any]:
    """Train once; what was measured."""
    session, diverged = workload.session(tool, lr, seed), False
    engine, plan = session.engine, session.plan
    course = Course(seconds, lambda step: plan.objective.evaluate(engine, plan.held_out, at=plan.exam(step)))
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal.create(Path(folder) / "journal.jsonl", header({}, engine))
        try:
            with suppress(Finished):
                Trainer(engine, replace(plan, held_out=()), journal, listener=course).run()
        except DivergedError:
            diverged = True
        finally:
            journal.close()
            engine.close()
    metrics = [before, *(point["metric"] for point in course.points)]
    found = {"steps": course.steps, "train_seconds": course.seconds, "rollbacks": course.rollbacks}
    found |= {"before": before, "best": max(metrics), "last": metrics[-1], "diverged": diverged}
    return {"lr": lr, **found, "course": course.points}


def workload_of(name: str, args: argparse.Namespace, loaded: tuple[Any, Any], folder: Path) -> Workload:
    """A task, by name."""
    if name == "trec":
        kind = KINDS["trec"]
        rows = kind.read(args.trec.read_text(encoding="utf-8", errors="replace"))
        parts, section = (rows[: args.train], rows[args.train :]), kind.task
    else:
        files = (DATA / f"reviews-{part}.jsonl" for part in ("train", "eval"))
        train, held_out = ([json.loads(line) for line in file.read_text("utf-8").splitlines()] for file in files)
        parts, section = (train[: args.train], held_out), REVIEWS
    options: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in section.items()
    }
    return Workload(ChoiceTask(**options), parts[0], parts[1][: args.held_out], *loaded, folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Every method on every seed of every task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trec", type=Path, help="TREC's train.txt")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=10.0, help="of steps, each run")
    parser.add_argument("--tasks", nargs="+", choices=("reviews", "trec"), default=("reviews", "trec"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=tuple(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--model", default="smollm2")
    args, console = parser.parse_args(arguments), Console(stderr=True)
    about = {"seconds": args.seconds, "train_rows": args.train, "held_out": args.held_out, "model": args.model}
    about |= {"trec": {"name": args.trec.name, "sha256": hashlib.sha256(args.trec.read_bytes()).hexdigest()}}
    about |= {"machine": machine(), "versions": versions()}
    runs: list[dict[str, Any]] = json.loads(args.json.read_text())["runs"] if args.json.exists() else []
    loaded = load(args.model, "float32")
    for name in args.tasks:
        with tempfile.TemporaryDirectory() as scratch:
            workload = workload_of(name, args, loaded, Path(scratch))
            before = workload.prepare(inputs=any(METHODS[method].inputs for method in args.methods))
            for seed, method in ((seed, method) for seed in args.seeds for method in args.methods):
                for factor in FACTORS if (name, seed) == ("reviews", SEEDS[0]) else (1.0,):
                    tool = METHODS[method]
                    found = run(workload, tool, tool.lr * factor, seed, args.seconds, before)
                    named = {"task": name, "method": method, "factor": round(factor, 3), "seed": seed}
                    runs = [one for one in runs if any(one[key] != value for key, value in named.items())]
                    runs.append({**named, "commit": commit(), **found})
                    write_json(args.json, {**about, "runs": runs})
                    console.print(f"{name}, {method}, lr {found['lr']:g}, seed {seed}: {found['best']:.1%}")


if __name__ == "__main__":
    main()
