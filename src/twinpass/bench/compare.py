"""One workload: steps of twinpass and of plain MeZO in turn, on the same batches, in one process."""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from twinpass.bench import gemm
from twinpass.bench.naive import NaiveMezo
from twinpass.bench.own import OwnFloat32, in_own_dtype, multiplies_lower
from twinpass.bench.peak import COVERS, peaks
from twinpass.bench.phases import Clock
from twinpass.bench.rivals import naive
from twinpass.config.compose import Session, build_embedded
from twinpass.config.schema import Config
from twinpass.core import Probe, StepReport, Work
from twinpass.engine.base import Engine
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.objective.base import scored
from twinpass.perturb.noise import derive_seed
from twinpass.report.fidelity import Fidelity
from twinpass.report.listener import Listener
from twinpass.task.example import Example
from twinpass.train.batches import batch
from twinpass.train.header import header
from twinpass.train.journal import Journal
from twinpass.train.trainer import Trainer

BATCHES = 2
"""Minibatches that come round again and again; the first epoch warms up, and fills what is kept across steps."""

UNCOUNTED = 2 * BATCHES

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}

Told = Callable[[str], None]


@dataclass
class Turns(Listener):
    """After each step of ours, one of plain MeZO on the same batch, one of the lean kind, and its bare products; before, ``own`` one in float32.

    What comes first is not counted: an epoch that warms up, and one under clocks, whose products are recorded.
    """

    config: Config
    session: Session[TorchEngine]
    rival: NaiveMezo
    told: Told
    own: OwnFloat32 | None = None
    ours: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    lean: list[float] = field(default_factory=list)
    perturbing: list[float] = field(default_factory=list)
    work: Work = field(default_factory=Work)
    clock: Clock = field(default_factory=Clock)
    shapes: list[list[gemm.Shape]] = field(default_factory=list)
    products: list[float] = field(default_factory=list)
    eps: float = 0.0
    _loops: list[gemm.Loop] = field(default_factory=list)
    _last: ExitStack = field(default_factory=ExitStack)

    def stepped(self, report: StepReport, seconds: float) -> None:
        self._last.close()
        step = report.step
        self.eps = report.estimate.eps
        if self.own is not None:
            self.own.step(self._examples(report), report)
        if step < BATCHES:
            self.first.append(seconds)
        elif step >= UNCOUNTED:
            self.ours.append(seconds)
            self.work += report.work
            self.told("ours")
            self._their_turn(report)
            self.products.append(self._loop(step % BATCHES).seconds())
        if BATCHES <= step + 1 < UNCOUNTED:
            self._record(len(self.session.plan.estimator.lanes(report.estimate.probes, report.estimate.eps)))

    def _record(self, lanes: int) -> None:
        engine = self.session.engine
        self.shapes.append(self._last.enter_context(gemm.recorded(engine.model, set(engine.parameters), lanes)))
        self._last.enter_context(self.clock.running())

    def _loop(self, place: int) -> gemm.Loop:
        if not self._loops:
            self._loops = [_bare(self.config, shapes) for shapes in self.shapes]
        return self._loops[place]

    def _examples(self, report: StepReport) -> list[Example]:
        plan = self.session.plan
        return batch(plan.train, plan.optimizer.batch_size, plan.seed, report.step)

    def _their_turn(self, report: StepReport) -> None:
        rival, examples = self.rival, self._examples(report)
        before = rival.perturb_seconds
        for lean, taken in ((False, self.theirs), (True, self.lean)):
            rival.lean, started = lean, time.perf_counter()
            for probe in report.estimate.probes:
                rival.step(examples, probe.seed % 2**63, report.estimate.eps, report.lr / len(report.estimate.probes))
            taken.append(time.perf_counter() - started)
            if not lean:
                self.perturbing.append(rival.perturb_seconds - before)
        self.told("plain MeZO")


def compare(config: Config, repeats: int, probes: int, told: Told = lambda part: None) -> dict[str, Any]:
    """Measure a configuration.

    Args:
        repeats: steps of each, after two epochs of ours and a forward pass of plain MeZO.
        probes: directions that the error of g is measured over.
        told: called with every part that is done.

    Returns:
        The workload's figures: seconds (medians, with ``spread``), shares, bytes.
    """
    session = build_embedded(config)
    plan = session.plan
    few = list(plan.train[: BATCHES * plan.optimizer.batch_size])
    optimizer = replace(plan.optimizer, steps=UNCOUNTED + repeats, warmup=0)
    session = replace(session, plan=replace(plan, train=few, held_out=[], eval_every=0, optimizer=optimizer))
    rival = naive(config, scored(plan.objective))
    rival.loss(few[: plan.optimizer.batch_size])
    own = OwnFloat32.of(config) if multiplies_lower(config) else None
    turns = Turns(config, session, rival, told, own)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal.create(Path(folder) / "journal.jsonl", header(config.values, session.engine))
        Trainer(session.engine, session.plan, journal, listener=turns).run()
        journal.close()
    step, plain, shares = statistics.median(turns.ours), statistics.median(turns.theirs), turns.clock.shares()
    limit, lean = statistics.median(turns.products), statistics.median(turns.lean)
    session.engine.reset()
    error = gradient_error(config, session, probes, turns.eps)
    told("error of g")
    beside = {} if own is None else _beside(own.seconds[UNCOUNTED:], turns.ours)
    del session, rival, own, turns.session, turns.rival, turns.own
    memory = peaks(config)
    told("memory")
    return {
        "dtype": config.model.dtype,
        "batch": optimizer.batch_size,
        "trainable": type(config.trainable).__name__.lower(),
        "naive_step_seconds": plain,
        "lean_step_seconds": lean,
        "step_seconds": step,
        "first_epoch_step_seconds": statistics.median(turns.first),
        "ratio": plain / step,
        "lean_ratio": lean / step,
        "gemm_seconds": limit,
        "gemm_fraction": limit / step,
        "noise_update_fraction": shares["noise"] + shares["update"],
        "naive_noise_update_fraction": statistics.median(turns.perturbing) / plain,
        "phases": shares,
        "hit_rate": turns.work.hit_rate,
        "token_layers": {"demand": turns.work.demand, "computed": turns.work.computed},
        "relative_error": error,
        "eps": turns.eps,
        **beside,
        "repeats": repeats,
        "spread": {
            "step_seconds": _spread(turns.ours),
            "naive_step_seconds": _spread(turns.theirs),
            "lean_step_seconds": _spread(turns.lean),
            "gemm_seconds": _spread(turns.products),
        },
        "peak_covers": COVERS,
        **{f"{prefix}peak_rss_bytes": memory[mode] for mode, prefix in PREFIXES.items()},
    }


PREFIXES = {"ours": "", "naive": "naive_", "inference": "inference_"}


def _spread(values: Sequence[float]) -> list[float]:
    return [min(values), max(values)]


def _bare(config: Config, shapes: list[gemm.Shape]) -> gemm.Loop:
    if multiplies_lower(config):
        return gemm.Loop(gemm.paired(shapes), torch.bfloat16)
    return gemm.Loop(shapes, DTYPES[config.model.dtype])


def _beside(float32: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    """Our own steps in float32: seconds, and how many times as long as those in bfloat16, turn by turn."""
    ratios = [slow / fast for slow, fast in zip(float32, ours, strict=True)]
    return {
        "compute_dtype": "bfloat16",
        "ours_float32_step_seconds": statistics.median(float32),
        "ratio_to_float32": statistics.median(ratios),
        "spread_float32": {"ours_float32_step_seconds": _spread(float32), "ratio_to_float32": _spread(ratios)},
    }


def _probes(session: Session[TorchEngine], count: int) -> list[Probe]:
    return [Probe(derive_seed(session.plan.seed, "bench", k)) for k in range(count)]


def gradient_error(config: Config, session: Session[TorchEngine], probes: int, eps: float) -> float:
    """How far g of the base weights is from that in float64, along the same directions, all lanes exact."""
    double = in_own_dtype(replace(config, model=replace(config.model, dtype="float64")))
    exact = session if config.model.dtype == "float64" else build_embedded(double)
    gradients = [_gradients(session, own.engine, probes, eps) for own in (session, exact)]
    return Fidelity.of(*gradients).relative_error


def _gradients(session: Session[TorchEngine], engine: Engine, count: int, eps: float) -> list[float]:
    plan = session.plan
    examples = plan.train[: plan.optimizer.batch_size]
    found: list[float] = []
    for probe in _probes(session, count):
        probes = [probe]
        lanes = plan.estimator.lanes(probes, eps)
        scores = engine.score(scored(plan.objective).requests(examples), lanes)
        losses = [scored(plan.objective).loss(examples, own) for own in scores.values]
        found += plan.estimator.estimate(probes, eps, losses).gradients
    return found
