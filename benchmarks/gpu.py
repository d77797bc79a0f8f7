"""Steps on one GPU beside plain MeZO's: ``python benchmarks/gpu.py --json FILE``; ``--quick`` tries it at a tiny size, also on a CPU.

Llamas with random weights in bfloat16, made on the device, and random tokens: a step's time does not depend on what they are. The
result is written after each workload, so that what was measured is there if a later one fails.
"""

import argparse
import gc
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gpu_kernels
import torch
from gpu_models import ALPHA, RANK, SHAPES, TARGETS, TINY, Batch, PlainLora, Shape
from torch import nn
from transformers import PreTrainedModel

from twinpass.bench import gemm
from twinpass.bench.naive import NaiveMezo
from twinpass.core import BASE, Probe, Work
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.estimate.spsa import Spsa
from twinpass.model.trainable import Activated, Full
from twinpass.objective.base import Objective
from twinpass.objective.choice import Choice
from twinpass.objective.completion import Completion
from twinpass.perturb.noise import derive_seed
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json
from twinpass.reuse.auto import Auto
from twinpass.reuse.plan import LanePlanner, Situation
from twinpass.task.example import Example
from twinpass.train.step import Draw, Method, apply, measure

EPS, LR = 1e-3, 1e-7
BATCHES = 2
"""Batches that come round again and again; in the first epoch what lasts is computed, which is timed apart."""

DTYPE = torch.bfloat16
Result = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """Batches, and whether an activated adapter is trained on them instead of all weights."""

    batch: Batch
    activated: bool = False

    @property
    def objective(self) -> Objective:
        """What is learnt."""
        return Completion() if self.batch.text else Choice()


def workloads(*, quick: bool) -> Mapping[str, Workload]:
    """All weights first: plain MeZO replaces them, and the engines are made after that."""
    length, shared, count, text = (6, 12, 2, 2) if quick else (256, 2048, 16, 64)
    prompts = Batch(count, length)
    headed = Batch(count, length, shared)
    return {
        "options": Workload(prompts),
        "text": Workload(Batch(count, length, text=text)),
        "demonstrations": Workload(headed),
        "activated": Workload(prompts, activated=True),
        "activated-demonstrations": Workload(headed, activated=True),
    }


class Device:
    """Where everything runs: waits for it, and reads its memory."""

    def __init__(self, name: str) -> None:
        self.device = torch.device(name)
        self.cuda = self.device.type == "cuda"

    def wait(self) -> None:
        """Until all that was asked for is done."""
        if self.cuda:
            torch.cuda.synchronize()

    def timed(self, call: Callable[[], object]) -> float:
        """Seconds, until the device is done."""
        self.wait()
        started = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - started

    def forget(self) -> None:
        """Give back what is not used, and begin a new peak."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    @property
    def peak(self) -> int | None:
        """Bytes, at the most, since :meth:`forget`."""
        return torch.cuda.max_memory_allocated() if self.cuda else None


def summary(seconds: Sequence[float]) -> Result:
    return {
        "median": statistics.median(seconds),
        "lowest": min(seconds),
        "highest": max(seconds),
        "steps": len(seconds),
    }


def plain(
    device: Device, model: nn.Module, trained: Sequence[nn.Parameter], work: Workload, batches: Any, repeats: int
) -> Result:
    """Plain MeZO's steps."""
    rival = NaiveMezo(model, trained, work.objective)
    device.forget()
    rival.step(batches[0], 1, EPS, LR)
    seconds = [device.timed(lambda k=k: rival.step(batches[k % BATCHES], 2 + k, EPS, LR)) for k in range(repeats)]  # type: ignore[misc]
    return {"step_seconds": summary(seconds), "peak_bytes": device.peak}


def ours(
    device: Device, engine: TorchEngine, work: Workload, batches: Sequence[Sequence[Example]], repeats: int
) -> Result:
    """Steps of twinpass: those of the first epoch, then some more, then two that are looked into.

    One on a batch of its own comes before all, and compiles the kernels.
    """
    objective, estimator = work.objective, Spsa()
    total = Work()
    strange = replace(work.batch, shared=0).examples(int(engine.model.config.vocab_size), BATCHES)

    def step(k: int) -> Work:
        examples = strange if k < 0 else batches[k % BATCHES]
        draw = Draw(k, examples, [Probe(derive_seed(0, "gpu", k))], EPS, LR)
        report = measure(engine, Method(estimator, objective, LanePlanner()), draw, Situation(engine.layers, [], 1.0))
        apply(engine, report)
        return report.work

    step(-1)
    device.forget()
    first = [device.timed(lambda k=k: step(k)) for k in range(BATCHES)]  # type: ignore[misc]
    seconds, done = [], list[Work]()
    for k in range(BATCHES, BATCHES + repeats):
        seconds.append(device.timed(lambda k=k: done.append(step(k))))  # type: ignore[misc]
    for each in done:
        total += each
    peak = device.peak
    lanes = 1 if work.activated else 2
    with gemm.recorded(engine.model, set() if work.activated else set(engine.parameters), lanes) as shapes:
        step(BATCHES + repeats)
    limit = products_alone(device, shapes)
    busy = profiled(device, lambda: step(BATCHES + repeats + 1))
    device.forget()
    requests = objective.requests(batches[0])
    engine.score(requests, [BASE])
    return {
        "step_seconds": summary(seconds),
        "first_epoch_seconds": summary(first),
        "peak_bytes": peak,
        "inference_peak_bytes": device.peak,
        "hit_rate": total.hit_rate,
        "reused": dict(total.reused),
        "token_layers": {"demand": total.demand, "computed": total.computed},
        "gemm_seconds": limit,
        "gemm_fraction": limit / statistics.median(seconds),
        "cache_slot_bytes": engine.cache_slot_bytes,
        **busy,
    }


def products_alone(device: Device, shapes: Sequence[gemm.Shape], repeats: int = 5) -> float:
    """Seconds that the step's matrix products take one after another, each at its best."""
    total = 0.0
    for shape in set(shapes):
        x = torch.randn(shape.rows, shape.columns, device=device.device).to(DTYPE)
        weight = torch.randn(shape.out, shape.columns, device=device.device).to(DTYPE)
        out = torch.empty(shape.rows, shape.out, device=device.device, dtype=DTYPE)
        times = []
        for _ in range(2 + repeats):
            times.append(device.timed(lambda: [torch.mm(x, weight.t(), out=out) for _ in range(10)]) / 10)  # noqa: B023
        total += min(times[2:]) * shape.times * shapes.count(shape)
    return total


def profiled(device: Device, call: Callable[[], object]) -> Result:
    """How long the device was busy in a step, in how many kernels, and which took longest; {} where it is none."""
    if not device.cuda:
        return {}
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            device.timed(call)
        kernels = [event for event in found.key_averages() if event.device_type.name == "CUDA"]
        longest = sorted(kernels, key=lambda event: event.self_device_time_total, reverse=True)[:12]
        return {
            "device_busy_seconds": sum(event.self_device_time_total for event in kernels) / 1e6,
            "kernels": sum(event.count for event in kernels),
            "longest": {event.key[:80]: event.self_device_time_total / 1e6 for event in longest},
        }
    except (RuntimeError, AttributeError) as error:  # what it is good for is no reason to lose what was measured
        return {"profile_error": str(error)}


def run(
    device: Device, shape: Shape, chosen: Mapping[str, Workload], repeats: int, done: Callable[[str, Result], None]
) -> None:
    """All workloads of a shape; ``done`` takes each as it is finished."""
    window = max(w.batch.shared + w.batch.length + w.batch.text for w in chosen.values())
    model = shape.build(device.device, DTYPE, window)
    batches = {name: [w.batch.examples(shape.vocabulary, k) for k in range(BATCHES)] for name, w in chosen.items()}
    rivals: dict[str, Result] = {}
    for name, work in chosen.items():
        rivals[name] = _rival(device, model, work, batches[name], 2 if work.batch.shared else 3)
        print(f"{name}: plain MeZO {rivals[name]['step_seconds']['median']:.3f} s", file=sys.stderr, flush=True)
    for activated in (False, True):
        budget = (
            4 * shape.slot_bytes(DTYPE) * max(w.batch.shared + w.batch.count * w.batch.length for w in chosen.values())
        )
        trainable = Activated(RANK, ALPHA, TARGETS) if activated else Full()
        made = time.perf_counter()
        engine = TorchEngine(model, trainable, reuse=Auto(budget=budget) if activated else None, invocation=(1,))
        made = time.perf_counter() - made
        for name, work in chosen.items():
            if work.activated == activated:
                own = ours(device, engine, work, batches[name], repeats)
                ratio = rivals[name]["step_seconds"]["median"] / own["step_seconds"]["median"]
                print(
                    f"{name}: twinpass {own['step_seconds']['median']:.4f} s, {ratio:.1f} times",
                    file=sys.stderr,
                    flush=True,
                )
                done(
                    name,
                    {
                        "twinpass": own,
                        "naive": rivals[name],
                        "ratio": ratio,
                        "engine_seconds": made,
                        "trained": engine.trained,
                    },
                )
        del engine


def _rival(device: Device, model: PreTrainedModel, work: Workload, batches: Any, repeats: int) -> Result:
    if not work.activated:
        return plain(device, model, list(model.parameters()), work, batches, repeats)
    lora = PlainLora(model)
    return plain(device, lora, list(lora.adapters), work, batches, repeats)


def kernels() -> Result:
    """The Triton kernels beside a copy."""
    return {
        "values": gpu_kernels.SIZE,
        "rates": {name: gpu_kernels.measure(dtype) for name, dtype in gpu_kernels.DTYPES.items()},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=list(SHAPES), help="models to run (default: all)")
    parser.add_argument("--repeats", type=int, default=7, help="steps of twinpass that are timed (default: 7)")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to try the script; no result to keep")
    parser.add_argument("--no-kernels", action="store_true", help="leave the kernels on their own out")
    args = parser.parse_args(arguments)
    cuda = torch.cuda.is_available()
    if not cuda and not args.quick:
        print(
            "this benchmark measures a CUDA device, and there is none that torch can use; --quick tries it",
            file=sys.stderr,
        )
        return 2
    device = Device("cuda" if cuda else "cpu")
    result: Result = {
        "dtype": "bfloat16",
        "sizes": {},
        "commit": commit(),
        "machine": machine() | ({"gpu": torch.cuda.get_device_name()} if cuda else {}),
        "versions": versions() | _more_versions(),
        "quick": args.quick,
    }
    failed = False

    def keep() -> None:
        if args.json:
            write_json(args.json, result)

    chosen = workloads(quick=args.quick)
    for name, shape in (TINY if args.quick else {name: SHAPES[name] for name in args.sizes}).items():
        found: dict[str, Result] = {}
        result["sizes"][name] = {"shape": vars(shape), "workloads": found}

        def done(workload: str, own: Result, found: dict[str, Result] = found) -> None:
            found[workload] = {"batch": vars(chosen[workload].batch), **own}
            keep()

        try:
            run(device, shape, chosen, args.repeats, done)
        except Exception:  # a later size, or the kernels, may still be measured
            traceback.print_exc()
            failed = True
        device.forget()
    if cuda and not args.no_kernels:
        result["kernels"] = kernels()
    keep()
    return int(failed)


def _more_versions() -> dict[str, str]:
    try:
        from triton import __version__ as triton_version
    except ImportError:
        return {}
    return {"triton": triton_version, "cuda": str(torch.version.cuda)}


if __name__ == "__main__":
    sys.exit(main())
