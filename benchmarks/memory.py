"""Peak memory of training beside inference, each in a process of its own: ``python benchmarks/memory.py``.

``tandem`` and ``inplace`` are full-parameter steps, ``tandem-8`` and ``tandem-16`` have so many times the batch;
``activated`` trains an activated adapter on more prompts than its KV budget holds. ``feedback`` moves output projections of the upper layers along the head's
error (``[trainable] kind = "full"`` by default), with all that is kept of 480 prompts in the default budget; ``feedback-keys`` keeps lower layers' keys and values, too.

Model loading is kept out of the figures: the weights are loaded from a folder as safetensors, and the peak is reset
between loading and work (Linux's ``/proc/self/clear_refs``).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from twinpass.core import BASE, Lane, Probe, Request, Term
from twinpass.engine.base import RelativeStep
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.model.load import load
from twinpass.model.projections import Projections
from twinpass.model.trainable import Activated, Full
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json
from twinpass.reuse.auto import Auto
from twinpass.reuse.invariant import Invariant

BATCH, LENGTH = 16, 40
MODES = ("inference", "tandem", "tandem-8", "tandem-16", "inplace", "activated", "feedback", "feedback-keys")
BUDGET = 256 << 20
SIGNS = [Lane(Probe(1), 1, 2**-10), Lane(Probe(1), -1, 2**-10)]


def peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status: this benchmark needs Linux")


def requests(batch: int, first: int = 0) -> list[Request]:
    """Prompts that share nothing, with two answers each; activated adapters act on the last three tokens."""
    return [
        Request(tuple((37 * i + 11 * j + 5) % 40000 for j in range(LENGTH)), (k,), LENGTH - 3)
        for i in range(first, first + batch)
        for k in (5, 9)
    ]


def move(engine: TorchEngine, batch: list[Request]) -> int:
    """A step along feedback; bytes that were evicted so far."""
    gradient = engine.feedback(batch, lambda scores: [-np.ones(len(score)) / len(scores) for score in scores])
    engine.descend(gradient, RelativeStep(2e-3))
    return gradient.scores.cache.evicted


def work(mode: str, folder: str) -> dict[str, Any]:
    model, _ = load(folder)
    if mode.startswith("feedback"):
        keys = mode == "feedback-keys"
        engine = TorchEngine(model, Projections(), reuse=Invariant(keep="keys") if keys else Auto())
        return measured(lambda step: move(engine, requests(BATCH, BATCH * step)), 30)
    trainable = Activated(8, 16.0) if mode == "activated" else Full()
    perturbation: Any = "inplace" if mode == "inplace" else "tandem"
    engine = TorchEngine(model, trainable, perturbation=perturbation, reuse=Auto(budget=BUDGET))
    batch = BATCH * int(mode.removeprefix("tandem-")) if mode.startswith("tandem-") else BATCH

    def step(number: int) -> int:
        lanes = [BASE] if mode == "inference" else SIGNS
        evicted = engine.score(requests(batch, BATCH * number), lanes).cache.evicted
        if mode != "inference":
            engine.update([Term(1, 1e-7)])
        return evicted

    return measured(step, 30 if mode == "activated" else 3)


def measured(step: Callable[[int], int], steps: int) -> dict[str, Any]:
    """The peak over so many steps, each of which returns the bytes that were evicted so far."""
    Path("/proc/self/clear_refs").write_text("5")
    before, evicted = peak_bytes(), 0
    for number in range(steps):
        evicted = step(number)
    peak = peak_bytes()
    return {"weights_loaded": before, "peak": peak, "beyond_weights": peak - before, "kv_evicted": evicted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.mode:
        print(json.dumps(work(args.mode, args.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = load("smollm2")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        del model
        peaks = {}
        for mode in MODES:
            command = [sys.executable, __file__, "--mode", mode, "--folder", folder]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            peaks[mode] = json.loads(output.splitlines()[-1])
    inference = peaks["inference"]["peak"]
    result = {
        "workload": f"SmolLM2-135M, float32, {BATCH} prompts of {LENGTH} tokens, 2 options",
        "kv_budget_bytes": BUDGET,
        "peak_rss_bytes": peaks,
        "ratio_to_inference": {mode: peaks[mode]["peak"] / inference for mode in MODES},
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }
    print(json.dumps({"ratio_to_inference": result["ratio_to_inference"], "peaks": peaks}, indent=2))
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
