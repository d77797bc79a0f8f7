"""Seconds a step against model size, batch, prefix length and probes, beside plain MeZO: ``python benchmarks/scale.py --json FILE --plot FILE``.

All weights are trained, in float32, on reviews. Models of other sizes than SmolLM2's are random Llamas with its tokenizer: a step's
time does not depend on what the weights are.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import LlamaConfig, LlamaForCausalLM

from twinpass.bench.rivals import naive
from twinpass.config.compose import build_embedded
from twinpass.config.load import load_config
from twinpass.core import Probe, Term
from twinpass.model.load import load
from twinpass.objective.base import scored
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json
from twinpass.report.plots import STYLE
from twinpass.schedule.epsilon import Known

CONFIG = Path(__file__).parent.parent / "examples" / "reviews-full.toml"
REPEATS = 3


@dataclass(frozen=True)
class Shape:
    """A Llama: hidden size, layers, heads, heads of keys and values, inner size of the MLP."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int


SIZES = (
    Shape(128, 6, 4, 2, 384),
    Shape(256, 12, 4, 2, 768),
    Shape(576, 30, 9, 3, 1536),  # SmolLM2-135M
    Shape(960, 32, 15, 5, 2560),
    Shape(2048, 16, 32, 8, 8192),  # Llama-3.2-1B but for the vocabulary
)
BATCHES, SHOTS, PROBES = (4, 16, 64), (0, 2, 4, 8, 16), (1, 2, 4)
PAPER = (7e9, 13e9, 70e9)


@contextmanager
def random_model(shape: Shape) -> Iterator[Path]:
    """A folder with a random model of this shape."""
    _, tokenizer = load("smollm2")
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.inner,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        yield Path(folder)


def measure(*settings: str, plain: bool = True) -> dict[str, Any]:
    """Seconds a step of ours and of plain MeZO, on the same batches."""
    config = load_config(CONFIG, ["run.out=unused", *settings])
    session = build_embedded(config)
    plan, engine = session.plan, session.engine
    size, eps = plan.optimizer.batch_size, plan.epsilon.at(0, Known())
    examples = plan.train[:size]
    requests = scored(plan.objective).requests(examples)

    found: dict[str, Any] = {"trained": engine.trained, "tokens": sum(len(request.inputs) for request in requests)}

    def ours(number: int) -> None:
        probes = [Probe(1000 * number + k) for k in range(plan.estimator.probes)]
        lanes = plan.estimator.lanes(probes, eps)
        losses = [scored(plan.objective).loss(examples, own) for own in session.engine.score(requests, lanes).values]
        gradients = plan.estimator.estimate(probes, eps, losses).gradients
        session.engine.update([Term(probe.seed, -1e-9 * g) for probe, g in zip(probes, gradients, strict=True)])

    seconds = timed(ours, REPEATS)
    found |= {"seconds": statistics.median(seconds), "spread": [min(seconds), max(seconds)], "naive_seconds": None}
    if plain:
        rival = naive(config, scored(plan.objective))
        rival.loss(examples[:2])

        def theirs(number: int) -> None:
            for k in range(plan.estimator.probes):
                rival.step(examples, 1000 * number + k, eps, 1e-9)

        found["naive_seconds"] = statistics.median(timed(theirs, 1, warm=False))
    return found


def timed(step: Callable[[int], None], repeats: int, *, warm: bool = True) -> list[float]:
    """Seconds of each of some steps, after one that is not counted."""
    seconds = []
    for number in range(repeats + warm):
        started = time.perf_counter()
        step(number)
        seconds.append(time.perf_counter() - started)
    return seconds[int(warm) :]


def slope(points: Sequence[dict[str, Any]], key: str = "seconds") -> tuple[float, float]:
    """Least squares of log(seconds) on log(x): the power of x, and the seconds at x = 1."""
    pairs = [(math.log(point["x"]), math.log(point[key])) for point in points if point[key]]
    power, start = np.polyfit([x for x, _ in pairs], [y for _, y in pairs], 1)
    return float(power), float(math.exp(start))


def sweep() -> dict[str, Any]:
    """All points, by what varies."""
    sizes = []
    for shape in SIZES:
        with random_model(shape) as folder:
            sizes.append(tell("size", measure(f"model.path={folder}")))
        sizes[-1]["x"] = sizes[-1]["trained"]
    batches = [{"x": n} | tell("batch", measure(f"optimizer.batch_size={n}")) for n in BATCHES]
    shots = [{"x": n} | tell("shots", measure(f"task.shots={n}", plain=n <= 8)) for n in SHOTS]
    probes = [{"x": n} | tell("probes", measure(f"estimator.probes={n}")) for n in PROBES]
    return {"size": sizes, "batch": batches, "shots": shots, "probes": probes}


def tell(kind: str, found: dict[str, Any]) -> dict[str, Any]:
    print(kind, found, flush=True)
    return found


def fits(points: dict[str, Any]) -> dict[str, Any]:
    """Slopes, and what they say of larger models on this machine: an extrapolation, not a measurement."""
    large = [point for point in points["size"] if point["trained"] > 1e8]  # below, it is overhead
    power, start = slope(large)
    plain_power, plain_start = slope(large, "naive_seconds")
    paper = {
        f"{size / 1e9:g}B": {"seconds": start * size**power, "naive_seconds": plain_start * size**plain_power}
        for size in PAPER
    }
    slopes = {kind: slope(points[kind])[0] for kind in ("batch", "probes")}
    return {"powers": {"size": power, "naive size": plain_power, **slopes}, "on_paper": paper}


def draw(points: dict[str, Any], path: Path) -> None:
    """Four panels: seconds a step against what varies."""
    titles = {
        "size": "weights",
        "batch": "examples a batch",
        "shots": "demonstrations in the prompt",
        "probes": "probes a step",
    }
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 7), layout="constrained")
        for axes, (kind, title) in zip(figure.subplots(2, 2).flat, titles.items(), strict=True):
            for key, name, colour in (("naive_seconds", "plain MeZO", "#718096"), ("seconds", "twinpass", "#2b6cb0")):
                drawn = [point for point in points[kind] if point[key]]
                axes.plot([p["x"] for p in drawn], [p[key] for p in drawn], "o-", color=colour, label=name)
            if kind == "size":
                axes.set(xscale="log", yscale="log")
            else:
                axes.set_ylim(bottom=0)
            axes.set(xlabel=title, ylabel="seconds a step")
            axes.legend()
        figure.savefig(path, dpi=144)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--plot", type=Path, help="where to draw it (PNG)")
    args = parser.parse_args()
    points = sweep()
    if args.json:
        facts = {"commit": commit(), "machine": machine(), "versions": versions()}
        write_json(args.json, {"points": points, **fits(points), **facts})
    if args.plot:
        draw(points, args.plot)


if __name__ == "__main__":
    main()
