"""How near the Triton kernels come to the bandwidth of a copy: ``python benchmarks/gpu_kernels.py --json FILE``."""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from twinpass.perturb.noise import DISTRIBUTIONS, Distribution
from twinpass.perturb.shard import Shard
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json

SIZE = 1 << 28
WIDTH = 4096
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SEEDS, SCALES = np.array([1], np.uint64), np.array([1e-3])
LANES = np.array([1e-3, -1e-3])

Calls = dict[str, tuple[int, Callable[[], object]]]


def seconds(call: Callable[[], object], repeats: int = 20) -> list[float]:
    """Times on the device, in ascending order; the first calls, which compile, are not among them."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return sorted(times)


def rate(moved: int, call: Callable[[], object]) -> dict[str, float]:
    times = seconds(call)
    return {
        "median": moved / statistics.median(times) / 1e9,
        "lowest": moved / times[-1] / 1e9,
        "highest": moved / times[0] / 1e9,
    }


def calls(w: Tensor, distribution: Distribution) -> Calls:
    """Each kernel with the bytes that it has to read and write."""
    from twinpass.perturb import triton_kernels

    n, bytes_each, shard = w.numel(), w.element_size(), Shard.whole(w.numel())
    lanes = torch.empty(2, n, dtype=w.dtype, device=w.device)
    table, rows = w.view(-1, WIDTH), torch.randperm(n // WIDTH, device=w.device)[: n // WIDTH // 4]
    some = torch.empty(len(rows), WIDTH, dtype=w.dtype, device=w.device)
    found: Calls = {
        "perturb": (
            3 * n * bytes_each,
            lambda: triton_kernels.perturb(w, lanes, LANES, 1, 2, distribution, shard),
        ),
        "accumulate": (
            2 * n * bytes_each,
            lambda: triton_kernels.accumulate(w, SEEDS, SCALES, 2, 3, distribution, shard),
        ),
        "gather": (
            2 * some.numel() * bytes_each,
            lambda: triton_kernels.gather(table, rows, some, 1e-3, 1, 2, distribution),
        ),
    }
    if w.dtype is torch.float32:
        found["fill"] = (n * bytes_each, lambda: triton_kernels.fill(w, 1, 2, 0, distribution))
    if w.dtype is torch.float32 and distribution != "gaussian":
        whole, once, grid = np.array([1 << 10]), np.array([1]), torch.zeros(n, device=w.device)
        found["lattice_add"] = (
            2 * n * bytes_each,
            lambda: triton_kernels.lattice_add(
                grid, SEEDS, whole, SCALES, once, 2, 3, 2.0**-22, 1 << 24, distribution, shard
            ),
        )
    return found


def measure(dtype: torch.dtype) -> dict[str, dict[str, float]]:
    w = torch.zeros(SIZE, dtype=dtype, device="cuda")
    rates = {"copy": rate(2 * w.numel() * w.element_size(), partial(torch.empty_like(w).copy_, w))}
    for distribution in DISTRIBUTIONS:
        for name, (moved, call) in calls(w, distribution).items():
            found = rate(moved, call)
            rates[f"{name} {distribution}"] = found | {"of_copy": found["median"] / rates["copy"]["median"]}
    return rates


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("this benchmark measures a CUDA device, and there is none that torch can use", file=sys.stderr)
        return 2
    from triton import __version__ as triton_version

    rates = {name: measure(dtype) for name, dtype in DTYPES.items()}
    result = {
        "unit": "GB/s, of bytes that have to be read and written",
        "values": SIZE,
        "rates": rates,
        "commit": commit(),
        "machine": machine() | {"gpu": torch.cuda.get_device_name()},
        "versions": versions() | {"triton": triton_version},
    }
    print(json.dumps(rates, indent=2))
    if args.json:
        write_json(args.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
