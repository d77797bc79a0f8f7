"""The linear layers of one SmolLM2-135M block under two lanes, by each way there is: ``python benchmarks/products.py --json FILE``.

Ways run by turns. ``times_float32`` is how many times as long each takes as what twinpass does by default: form the weights in float32 where they
are multiplied. Each processor has a file: where another's is there, it is renamed first (``products-xeon.json``).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twinpass.engine.embedded.linear.products import product
from twinpass.perturb import kernels
from twinpass.perturb.gemm import multiply, pairs, tiles
from twinpass.perturb.noise import Distribution
from twinpass.perturb.shard import Shard
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json

LAYERS = {"q, o": (576, 576, 2), "k, v": (192, 576, 2), "gate, up": (1536, 576, 2), "down": (576, 1536, 1)}
"""Outputs, inputs, how many of them."""

OPPOSITE = np.array([0]), np.array([1]), np.array([1e-3])
FORMED: tuple[int, int, Distribution] = (1, 2, "binomial")
"""Seed, key and noise."""


class Layer:
    """A linear layer of random weights and rows of two lanes."""

    def __init__(self, out: int, width: int, rows: int) -> None:
        noise = np.random.default_rng(0)
        self.x = noise.standard_normal((2, rows, width)).astype(np.float32)
        self.w = noise.standard_normal(out * width).astype(np.float32)
        self.y = np.empty((2, rows, out), np.float32)
        self.lanes = np.empty((2, out * width), np.float32)
        self.lane_weights = torch.from_numpy(self.lanes).view(2, out, width)
        self.whole = torch.from_numpy(self.w).view(out, width)
        self.low = self.whole.bfloat16()
        self.rows = torch.from_numpy(self.x).flatten(0, 1)
        self.low_rows = self.rows.bfloat16()

    def float32(self) -> None:
        multiply.multiply(self.x, self.w, np.array([1e-3, -1e-3]), self.y, *FORMED)

    def written_float32(self) -> None:
        """Both lanes' weights are written, whole, and the library multiplies by them: oneDNN, where PyTorch has it."""
        kernels.perturb(self.w, self.lanes, np.array([1e-3, -1e-3]), *FORMED, Shard.whole(self.w.size))
        for rows, lane in zip(self.rows.chunk(2), self.lane_weights, strict=True):
            product(rows, lane)

    def bfloat16(self, instructions: tiles.Instructions) -> None:
        pairs.multiply(pairs.split(self.x, *OPPOSITE), self.w, *OPPOSITE, self.y, *FORMED, instructions)

    def bare_float32(self) -> None:
        for half in self.rows.chunk(2):
            product(half, self.whole)

    def bare_bfloat16(self) -> None:
        """W by the sums and the differences, Z by the sums."""
        torch.mm(self.low_rows, self.low.t())
        torch.mm(self.low_rows.chunk(2)[0], self.low.t())


def ways() -> Mapping[str, Callable[[Layer], Any]]:
    ours = {f"bfloat16, {name}": partial(Layer.bfloat16, instructions=name) for name in tiles.available()}
    bare = {"bare float32": Layer.bare_float32, "bare bfloat16": Layer.bare_bfloat16}
    return {"float32": Layer.float32, "written float32": Layer.written_float32, **ours, **bare}


def seconds(way: Callable[[Layer], Any], layers: list[tuple[Layer, int]]) -> float:
    started = time.perf_counter()
    for layer, times in layers:
        for _ in range(times):
            way(layer)
    return time.perf_counter() - started


def spread(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": median, "lower_quartile": low, "upper_quartile": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=640, help="of each lane (default: 640, those of 16 reviews)")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    layers = [(Layer(out, width, args.rows), times) for out, width, times in LAYERS.values()]
    taken: dict[str, list[float]] = {name: [] for name in ways()}
    with torch.no_grad():
        for turn in range(args.rounds + 1):
            for name, way in ways().items():
                found = seconds(way, layers)
                if turn:
                    taken[name].append(found)
    times = {name: [a / b for a, b in zip(own, taken["float32"], strict=True)] for name, own in taken.items()}
    result = {
        "rows": args.rows,
        "rounds": args.rounds,
        "seconds": {name: spread(own) for name, own in taken.items()},
        "times_float32": {name: spread(own) for name, own in times.items()},
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }
    print(json.dumps({key: result[key] for key in ("seconds", "times_float32")}, indent=2))
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
