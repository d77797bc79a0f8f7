"""The section on a GPU, from ``benchmarks/results/gpu.json``."""

from collections.abc import Mapping
from typing import Any

Result = Mapping[str, Any]
NAMES = {
    "options": "all weights, two options a prompt (W1)",
    "text": "all weights, a text to write: nothing is shared",
    "demonstrations": "all weights, demonstrations that all share (W2)",
    "activated": "activated adapter, later epochs",
    "activated-demonstrations": "activated adapter, demonstrations, later epochs",
}


def section(result: Result) -> str:
    """What was measured, with the goals beside it."""
    versions, found = result["versions"], result["machine"]
    lines = [
        "\n## On a GPU\n",
        f"{found['gpu']}, {result['dtype']}, PyTorch {versions['torch']}, Triton {versions['triton']}, commit {result['commit']} "
        "([gpu.json](../benchmarks/results/gpu.json); `make bench-gpu`). Llamas with random weights, random tokens; plain MeZO is the same "
        "algorithm as above on the same device, its steps before twinpass's in one process. Seconds are medians. *Busy*: of a step, how long "
        "the device computed; the rest it waited for Python.\n",
    ]
    for size, own in result["sizes"].items():
        lines += _steps(size, own["workloads"]) if own["workloads"] else []
    if "kernels" in result:
        lines += _kernels(result["kernels"])
    return "\n".join(lines)


def _steps(size: str, workloads: Mapping[str, Result]) -> list[str]:
    lines = [
        f"### {size}\n",
        "| workload | plain MeZO | twinpass | ratio | spread | first epoch | hit rate | products / step | busy | kernels |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in workloads.items():
        ours, plain = r["twinpass"], r["naive"]["step_seconds"]
        step, busy = ours["step_seconds"], ours.get("device_busy_seconds")
        share = "not measured" if busy is None else f"{busy / step['median']:.0%}"
        lines.append(
            f"| {NAMES[name]} | {plain['median']:.3f} s | {step['median']:.4f} s | {r['ratio']:.1f} | {step['lowest']:.4f} to {step['highest']:.4f} s "
            f"| {ours['first_epoch_seconds']['median']:.3f} s | {ours['hit_rate']:.1%} | {ours['gemm_fraction']:.2f} | {share} "
            f"| {ours.get('kernels', 'not counted')} |"
        )
    lines += ["", "| workload | peak memory | plain | inference |", "|---|---|---|---|"]
    for name, r in workloads.items():
        peaks = (r["twinpass"]["peak_bytes"], r["naive"]["peak_bytes"], r["twinpass"]["inference_peak_bytes"])
        lines.append(f"| {NAMES[name]} | {' | '.join(_gib(peak) for peak in peaks)} |")
    return [*lines, ""]


def _kernels(result: Result) -> list[str]:
    lines = [
        "### Kernels\n",
        "Bytes that have to be moved, against a copy on the same device.\n",
        "| kernel | dtype | GB/s | of a copy |",
        "|---|---|---|---|",
    ]
    for dtype, rates in result["rates"].items():
        for name, rate in rates.items():
            lines.append(f"| {name} | {dtype} | {rate['median']:,.0f} | {rate.get('of_copy', 1.0):.0%} |")
    return [*lines, ""]


def _gib(size: int | None) -> str:
    return "not measured" if size is None else f"{size / 2**30:.2f} GiB"
