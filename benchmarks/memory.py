"""Peak memory of a full-parameter step beside inference, each in a process of its own: ``python benchmarks/memory.py``.

Model loading is kept out of the figures: the weights are loaded from a folder as safetensors, and the peak is reset
between loading and work (Linux's ``/proc/self/clear_refs``).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from twinpass.core import BASE, Lane, Probe, Request, Term
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.embedded.load import load
from twinpass.engine.embedded.trainable import Full
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json

BATCH, LENGTH = 16, 40
MODES = ("inference", "tandem", "inplace")


def peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status: this benchmark needs Linux")


def work(mode: str, folder: str) -> dict[str, Any]:
    model, _ = load(folder)
    requests = [
        Request(tuple((37 * i + 11 * j) % 40000 for j in range(LENGTH)), (k,)) for i in range(BATCH) for k in (5, 9)
    ]
    engine = TorchEngine(model, Full(), perturbation="inplace" if mode == "inplace" else "tandem")
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    probe = Probe(1)
    for _ in range(3):
        if mode == "inference":
            engine.score(requests, [BASE])
        else:
            engine.score(requests, [Lane(probe, 1, 2**-10), Lane(probe, -1, 2**-10)])
            engine.update([Term(1, 1e-7)])
    return {"weights_loaded": before, "peak": peak_bytes()}


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
        "workload": f"SmolLM2-135M, float32, full-parameter, {BATCH} prompts of {LENGTH} tokens, 2 options",
        "peak_rss_bytes": peaks,
        "ratio_to_inference": {mode: peaks[mode]["peak"] / inference for mode in MODES},
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }
    print(json.dumps(result["ratio_to_inference"], indent=2))
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
