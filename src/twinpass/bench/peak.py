"""Peak memory, each in a process of its own: ``python -m twinpass.bench.peak FILE MODE``.

Loading is kept out: weights come from a folder of safetensors, and the peak is reset between loading and work, through
Linux's ``/proc/self/clear_refs``. Elsewhere there are no figures.
"""

import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from twinpass.bench.rivals import exact, fed_back, first_order, informed, linear_probe, naive
from twinpass.config.compose import build_embedded
from twinpass.config.load import parse
from twinpass.config.schema import Config
from twinpass.core import BASE, Probe
from twinpass.model.load import load
from twinpass.objective.base import scored
from twinpass.train.folder import RunFolder
from twinpass.train.header import header
from twinpass.train.journal import Journal
from twinpass.train.trainer import Trainer

STEPS = 3
COVERS = "three steps, after an epoch's keys and values where they are kept"
"""What our own peak is one of."""

RESET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def peaks(config: Config, modes: tuple[str, ...] = ("ours", "naive", "inference")) -> dict[str, int | None]:
    """Bytes of each, resident, at the most; None where the system does not tell."""
    if not RESET.exists():
        return dict.fromkeys(modes)
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = load(**asdict(config.model))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        del model
        values = {**config.values, "model": {**config.values["model"], "path": folder}}
        file = Path(folder) / "twinpass.json"
        file.write_text(json.dumps(values))
        return {mode: _peak_of(file, mode) for mode in modes}


def _peak_of(file: Path, mode: str) -> int:
    command = [sys.executable, "-m", "twinpass.bench.peak", str(file), mode]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(output.splitlines()[-1])


def _train(config: Config) -> Callable[[], Any]:
    """Some steps; where keys and values are kept across steps, with those of all training rows, as after an epoch."""
    session = build_embedded(config)
    engine = session.engine
    optimizer = replace(session.plan.optimizer, steps=STEPS, warmup=0)
    plan = replace(session.plan, held_out=[], eval_every=0, optimizer=optimizer)

    def work() -> None:
        if engine.keeps:
            for start in range(0, len(plan.train), optimizer.batch_size):
                requests = scored(plan.objective).requests(plan.train[start : start + optimizer.batch_size])
                engine.warm(requests, [Probe(0, engine.parameters.blocks[0])], frozenset())
        with tempfile.TemporaryDirectory() as folder:
            run = RunFolder(Path(folder))
            journal = Journal.create(run.journal, header(config.values, session.engine))
            Trainer(session.engine, plan, journal).run()
            journal.close()

    return work


def _inference(config: Config) -> Callable[[], Any]:
    session = build_embedded(config)
    plan = session.plan
    examples = plan.train[: plan.optimizer.batch_size]
    return lambda: session.engine.score(scored(plan.objective).requests(examples), [BASE])


def _naive(config: Config, *, lean: bool = False) -> Callable[[], Any]:
    plan = build_embedded(config).plan
    _forget()
    rival = naive(config, scored(plan.objective), lean=lean)
    return lambda: rival.step(plan.train[: plan.optimizer.batch_size], 1, 1e-3, 0.0)


def _first_order(config: Config, *, low: bool = False) -> Callable[[], Any]:
    plan = build_embedded(config).plan
    _forget()
    rival = first_order(config, scored(plan.objective), low=low)
    return lambda: rival.step(plan.train[: plan.optimizer.batch_size])


def _probe(config: Config) -> Callable[[], Any]:
    plan = build_embedded(config).plan
    _forget()
    probe = linear_probe(config)
    return lambda: probe.states(plan.train[: 2 * plan.optimizer.batch_size])


def _forget() -> None:
    """Give memory that is not used any more back to the system, so that it does not count for what comes next."""
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


MODES: Mapping[str, Callable[[Config], Callable[[], Any]]] = {
    "ours": _train,
    "inference": _inference,
    "naive": _naive,
    "lean": partial(_naive, lean=True),
    "exact": lambda config: _train(exact(config)),
    "fed_back": lambda config: _train(fed_back(config)),
    "informed": lambda config: _train(informed(config)),
    "probe": _probe,
    "first_order": _first_order,
    "first_order_bfloat16": partial(_first_order, low=True),
}


def main(file: str, mode: str) -> None:
    """Load, forget the peak so far, work, print the peak."""
    config = parse(json.loads(Path(file).read_text()), file, Path(file).parent)
    work = MODES[mode](config)
    _forget()
    RESET.write_text("5")
    work()
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")]
    print(int(line.split()[1]) * 1024)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
