"""How many normals a second the noise kernels draw, beside ``torch.randn``: ``python benchmarks/noise.py --json FILE``."""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from twinpass.perturb.kernels import fill
from twinpass.perturb.noise import DISTRIBUTIONS
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json

SIZE = 50_000_000


def rate(draw: Callable[[], object], repeats: int = 7) -> dict[str, float]:
    draw()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        draw()
        seconds.append(time.perf_counter() - start)
    rates = sorted(SIZE / s / 1e9 for s in seconds)
    return {"median": statistics.median(rates), "lowest": rates[0], "highest": rates[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    out = np.empty(SIZE, np.float32)
    rates: dict[str, dict[str, float]] = {d: rate(partial(fill, out, 1, 2, 0, d)) for d in DISTRIBUTIONS}
    tensor = torch.from_numpy(out)
    rates["torch.randn"] = rate(lambda: torch.randn(SIZE, out=tensor))
    result = {
        "unit": "billion values a second",
        "values": SIZE,
        "rates": rates,
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }
    print(json.dumps(rates, indent=2))
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
