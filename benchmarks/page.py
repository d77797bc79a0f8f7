"""Write docs/benchmarks.md and its plots from the result files alone: ``python benchmarks/page.py``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twinpass.report.plots_bench import draw_race, draw_step

ROOT = Path(__file__).parent.parent
RESULTS, IMAGES, PAGE = ROOT / "benchmarks/results", ROOT / "docs/images/bench", ROOT / "docs/benchmarks.md"
Result = Mapping[str, Any]

TOP = """\
# Benchmarks

Written by `benchmarks/page.py` from `benchmarks/results/bench-*.json` alone. Each file has commit, machine, versions and configuration in it;
`make bench` makes them again, `twinpass bench my.toml` does the same for a task of your own.

**Plain MeZO** is Algorithm 1 as the paper's trainer runs it, on the same Hugging Face model: a global seed, z drawn four times a step, weights rewritten out of place, a padded
batch with every answer option on its own, logits at all positions, one forward a sign; for adapters, LoRA of the same size. Steps of both alternate in one process, on the same batches;
seconds are medians, of steps after the first epoch. **Products alone** runs nothing but the matrix products that twinpass's step makes with distinct tokens, each by the fastest way that
PyTorch has here: what a step cannot go below without computing less. **Error of g** is that against float64 on the same weights and directions.
"""


def main() -> None:
    """Draw, write."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    results = read()
    for name, result in results.items():
        (draw_race if "methods" in result else draw_step)(result, IMAGES / f"{name}.png")
    PAGE.write_text(page(results))


def read() -> dict[str, Result]:
    """The committed results by workload."""
    return {
        path.stem.removeprefix("bench-"): json.loads(path.read_text()) for path in sorted(RESULTS.glob("bench-*.json"))
    }


def page(results: Mapping[str, Result]) -> str:
    """The page's text."""
    races = {name: result for name, result in results.items() if "methods" in result}
    steps = {name: result for name, result in results.items() if name not in races}
    if not results:
        return f"{TOP}\nNo result is committed yet.\n"
    return "\n".join([TOP, *_steps(steps), *(_race(name, result) for name, result in races.items())])


def _link(name: str) -> str:
    return f"[{name}](../benchmarks/results/bench-{name}.json)"


def _steps(results: Mapping[str, Result]) -> list[str]:
    if not results:
        return []
    lines = [
        "## A step\n",
        "| workload | trained | batch | plain MeZO | twinpass | ratio | hit rate | products / step | noise + update | plain: noise + update | error of g |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        lines.append(
            f"| {_link(name)} | {r['trainable']}, {r['dtype']} | {r['batch']} | {r['naive_step_seconds']:.2f} s | {r['step_seconds']:.3f} s "
            f"| {r['ratio']:.1f} | {r['hit_rate']:.1%} | {r['gemm_fraction']:.2f} | {r['noise_update_fraction']:.1%} "
            f"| {r['naive_noise_update_fraction']:.1%} | {r['relative_error']:.1e} |"
        )
    lines += [
        "",
        "| workload | first epoch | spread, twinpass | spread, plain | peak memory | plain | inference |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        ours, plain = (r["spread"][key] for key in ("step_seconds", "naive_step_seconds"))
        lines.append(
            f"| {_link(name)} | {r['first_epoch_step_seconds']:.2f} s | {ours[0]:.3f} to {ours[1]:.3f} s | {plain[0]:.2f} to {plain[1]:.2f} s "
            f"| {_mib(r['peak_rss_bytes'])} | {_mib(r['naive_peak_rss_bytes'])} | {_mib(r['inference_peak_rss_bytes'])} |"
        )
    lines.append("")
    return [*lines, *(f"![{name}: seconds a step](images/bench/{name}.png)\n" for name in results)]


def _race(name: str, result: Result) -> str:
    lines = [
        "## Accuracy against time\n",
        f"Reviews, from the base model to {result['target']:.0%} on held-out rows or {result['limit_seconds']:.0f} s of training, evaluations not counted ({_link(name)}).\n",
        "| | seconds to the target | last | steps | peak memory |",
        "|---|---|---|---|---|",
    ]
    for method, r in result["methods"].items():
        last, reached = r["course"][-1], r["seconds_to_target"]
        lines.append(
            f"| {method} | {'not reached' if reached is None else f'{reached:.0f}'} | {last['accuracy']:.1%} after {last['seconds']:.0f} s "
            f"| {last['step']} | {_mib(r['peak_rss_bytes'])} |"
        )
    lines += [
        "",
        f"Inference peaks at {_mib(result['inference_peak_rss_bytes'])}.\n",
        f"![accuracy against time](images/bench/{name}.png)\n",
    ]
    return "\n".join(lines)


def _mib(size: int | None) -> str:
    return "not measured" if size is None else f"{size / 2**20:,.0f} MiB"


if __name__ == "__main__":
    main()
