"""Write docs/benchmarks.md, its plots and the table of docs/models.md from the result files alone: ``python benchmarks/page.py``."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import freshness
import page_gpu
import page_models
import page_products
import page_sglang
import page_tasks
import page_toolbox

from twinpass.report.plots_bench import draw_race, draw_step, dtype_of

ROOT = Path(__file__).parent.parent
RESULTS, IMAGES, PAGE = ROOT / "benchmarks/results", ROOT / "docs/images/bench", ROOT / "docs/benchmarks.md"
MODELS = ROOT / "docs/models.md"
Result = Mapping[str, Any]

TOP = """\
# Benchmarks

Written by `benchmarks/page.py` from `benchmarks/results/bench-*.json`, `products*.json`, `scale.json`, `population.json`, `served-population.json`, `served-adapter.json`, `serving.json`, `tasks.json`, `toolbox.json` and `gpu.json` alone. Each file has commit, machine, versions and configuration in it;
`make bench` makes them again, `twinpass bench my.toml --set estimator.kind=spsa` does the same for a task of your own.

**Plain MeZO** is Algorithm 1 as the paper's trainer runs it, on the same Hugging Face model: a global seed, z drawn four times a step, weights rewritten out of place, a padded
batch with every answer option on its own, logits at all positions, one forward a sign; for adapters, LoRA of the same size. Steps of both alternate in one process, on the same batches;
seconds are medians, of steps after the first epoch. **Lean** is the same algorithm as a careful user would write it: distinct sequences of a batch once, padded, logits where they are read, weights moved in place; a dash: not measured yet. **Products alone** runs nothing but the matrix products that twinpass's step makes with distinct tokens, in turn with the steps, each by the fastest way that
PyTorch has here: what a step cannot go below without computing less. **Error of g** is that against float64 on the same weights and directions. Peaks marked \\* are those of three steps, and lack most of the keys and values
that an activated run keeps from epoch to epoch (up to `reuse.budget`); they are to be measured again.
"""


def main() -> None:
    """Draw, write."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    results = read()
    for name, result in results.items():
        (draw_race if "methods" in result else draw_step)(result, IMAGES / f"{name}.png")
    PAGE.write_text(whole(results) + age())
    if (models := RESULTS / "models.json").exists():
        MODELS.write_text(page_models.put(MODELS.read_text(), page_models.section(json.loads(models.read_text()))))


def whole(results: Mapping[str, Result]) -> str:
    """The page's text, with the sections whose results are there."""
    more = {
        "scale": _scale,
        "population": population,
        "served-population": page_sglang.population,
        "serving": page_sglang.serving,
        "served-adapter": page_sglang.adapter,
        "tasks": page_tasks.section,
        "toolbox": page_toolbox.section,
        "gpu": page_gpu.section,
    }
    files = {name: RESULTS / f"{name}.json" for name in more}
    products = {file.stem: json.loads(file.read_text()) for file in sorted(RESULTS.glob("products*.json"))}
    return (
        page(results)
        + page_products.section(products)
        + "".join(more[name](json.loads(file.read_text())) for name, file in files.items() if file.exists())
    )


def age() -> str:
    """The page's last section, which depends on the checkout and not only on the results."""
    return freshness.section() if shutil.which("git") and (ROOT / ".git").exists() else ""


def read() -> dict[str, Result]:
    """The committed results by workload."""
    return {
        path.stem.removeprefix("bench-"): json.loads(path.read_text()) for path in sorted(RESULTS.glob("bench-*.json"))
    }


def page(results: Mapping[str, Result]) -> str:
    """The part on a CPU."""
    races = {name: result for name, result in results.items() if "methods" in result}
    steps = {name: result for name, result in results.items() if name not in races}
    if not results:
        return f"{TOP}\nNo result is committed yet.\n"
    lower = {name: result for name, result in steps.items() if "ratio_to_float32" in result}
    return "\n".join([TOP, *_steps(steps), *_lower(lower), *(_race(name, result) for name, result in races.items())])


def _link(name: str) -> str:
    return f"[{name}](../benchmarks/results/bench-{name}.json)"


def _steps(results: Mapping[str, Result]) -> list[str]:
    if not results:
        return []
    lines = [
        "## A step\n",
        "| workload | trained | batch | plain MeZO | lean | twinpass | ratio | to lean | hit rate | products / step | noise + update | plain: noise + update | error of g |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        lean = r.get("lean_step_seconds")
        beside = ("-", "-") if lean is None else (f"{lean:.2f} s", f"{r['lean_ratio']:.1f}")
        lines.append(
            f"| {_link(name)} | {r['trainable']}, {dtype_of(r)} | {r['batch']} | {r['naive_step_seconds']:.2f} s | {beside[0]} | {r['step_seconds']:.3f} s "
            f"| {r['ratio']:.1f} | {beside[1]} | {r['hit_rate']:.1%} | {r['gemm_fraction']:.2f} | {r['noise_update_fraction']:.1%} "
            f"| {r['naive_noise_update_fraction']:.1%} | {r['relative_error']:.1e} |"
        )
    lines += [
        "",
        "| workload | first epoch | spread, twinpass | spread, plain | peak memory | plain | inference | processor | commit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        ours, plain = (r["spread"][key] for key in ("step_seconds", "naive_step_seconds"))
        lines.append(
            f"| {_link(name)} | {r['first_epoch_step_seconds']:.2f} s | {ours[0]:.3f} to {ours[1]:.3f} s | {plain[0]:.2f} to {plain[1]:.2f} s "
            f"| {_own_peak(r, r['peak_rss_bytes'])} | {_mib(r['naive_peak_rss_bytes'])} | {_mib(r['inference_peak_rss_bytes'])} "
            f"| {r['machine']['processor']} | {r['commit']} |"
        )
    lines.append("")
    return [*lines, *(f"![{name}: seconds a step](images/bench/{name}.png)\n" for name in results)]


def _lower(results: Mapping[str, Result]) -> list[str]:
    if not results:
        return []
    lines = [
        "## Products in bfloat16\n",
        "Float32 weights, linear layers multiplied in bfloat16 with the signs as [sum and difference](maths/bfloat16.md); steps in turn with twinpass's own in float32.\n",
        "| workload | float32 | bfloat16 | ratio, turn by turn | its spread | error of g | at eps |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        low, high = r["spread_float32"]["ratio_to_float32"]
        lines.append(
            f"| {_link(name)} | {r['ours_float32_step_seconds']:.3f} s | {r['step_seconds']:.3f} s | {r['ratio_to_float32']:.2f} "
            f"| {low:.2f} to {high:.2f} | {r['relative_error']:.1e} | {r['eps']:.1e} |"
        )
    return [*lines, ""]


def _scale(result: Result) -> str:
    """What a step takes as things grow, and what that says of models that were not run."""
    lines = [
        "\n## Scale\n",
        "All weights, float32, reviews; one step of plain MeZO beside three of twinpass's "
        "([scale.json](../benchmarks/results/scale.json); `make bench-scale`). Models other than SmolLM2-135M are random Llamas with its tokenizer.\n",
        "![seconds a step against weights, batch, demonstrations and probes](images/scale.png)\n",
        "| | | twinpass | plain MeZO | ratio |",
        "|---|---|---|---|---|",
    ]
    for kind, points in result["points"].items():
        for point in points:
            plain = point["naive_seconds"]
            x = f"{point['x'] / 1e6:,.0f}M" if kind == "size" else f"{point['x']}"
            beside = "not run | " if plain is None else f"{plain:.2f} s | {plain / point['seconds']:.1f}"
            lines.append(f"| {kind} | {x} | {point['seconds']:.2f} s | {beside} |")
    powers = ", ".join(f"{name} {power:.2f}" for name, power in result["powers"].items())
    guesses = "; ".join(
        f"{size}: {each['seconds']:,.0f} s a step (plain {each['naive_seconds']:,.0f} s)"
        for size, each in result["on_paper"].items()
    )
    lines += [
        "",
        f"Seconds grow with powers of: {powers} (least squares on logarithms; for size, of models above 100M weights). On paper, on these two cores: {guesses}. "
        "Extrapolated, not run; weights in float32 alone would take 4 bytes each.\n",
    ]
    return "\n".join(lines)


def population(result: Result) -> str:
    """The section on populations that write."""
    phases = list(result["activated"]["phases"])
    lines = [
        "\n## A population that writes\n",
        f"A step's texts for rewards: {result['lanes']} lanes, {result['prompts']} prompts, {result['tokens']} tokens each "
        f"([file](../benchmarks/results/population.json), commit {result['commit'][:12]}, {result['machine']['processor']}, medians of {result['repeats']}; `make bench-population`). "
        "**Without lanes** is the same engine writing as many texts with the base lane. **Public** is what public evolution strategies do: the whole "
        "model perturbed in place, Hugging Face's `generate` with its cache, one member after another. **Prompts read** compares lanes with the base lane after "
        "prompts have been read, which LoRA's lanes do each for itself and the base lane once; **prompts apart** compares all of a step with the base lane where it reads as many: no two texts share a prompt. The last columns are shares of the step.\n",
        f"| | step | tokens a second | without lanes | of that | prompts apart | prompts read | times public | hit rate | {' | '.join(phases)} |",
        f"|---{'|---' * (8 + len(phases))}|",
    ]
    for kind in ("activated", "lora"):
        found = result[kind]
        shares = " | ".join(f"{found['phases'][name]:.1%}" for name in phases)
        lines.append(
            f"| {kind} | {found['seconds']:.2f} s | {found['tokens_per_second']:.0f} | {found['bare']['tokens_per_second']:.0f} | "
            f"{found['of_bare']:.2f} | {page_sglang.apart(found)} | {found['of_bare_prompts_read']:.2f} | {found['ratio']:.1f} | {found['hit_rate']:.1%} | {shares} |"
        )
    public = result["public"]
    lines.append(f"\nPublic: {public['seconds']:.1f} s, {public['tokens_per_second']:.0f} tokens a second.\n")
    if "products" in result["activated"]:  # results from before it was measured have none
        lines += _most(result)
    return "\n".join(lines)


def _most(result: Result) -> list[str]:
    """What products with the model's weights alone allow."""
    lines = [
        "What products with the model's weights alone take, run bare and in turn with the steps: nothing that makes them in float32 is more times as fast as public strategies "
        "than **at most** says, and at the rate of large products of square matrices not more than **at the peak**. The last columns are shares of a step.\n",
        "| | products | of the step | of the peak's rate | times public | at most | at the peak | linear layers | attention | other |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in ("activated", "lora"):
        found, phases = result[kind]["products"], result[kind]["engine_phases"]
        shares = [phases["linear"], phases["attention"]]
        told = " | ".join(f"{share:.0%}" for share in (*shares, 1 - sum(shares)))
        lines.append(
            f"| {kind} | {found['flops'] / 1e9:,.0f} GFLOP in {found['seconds']:.2f} s | {found['share']:.0%} | {found['of_peak']:.0%} | "
            f"{result[kind]['ratio']:.1f} | {found['ratio']:.1f} | {found['peak_ratio']:.1f} | {told} |"
        )
    return [*lines, ""]


RACES = {
    "time-to-accuracy-all": "reviews",
    "time-to-accuracy-all-lean": "reviews, plain MeZO at a rate that suits it",
    "time-to-accuracy-all-epyc": "reviews, an earlier day and another processor",
    "time-to-accuracy-trec": "TREC",
    "time-to-accuracy-gsm8k": "worked answers of GSM8K",
}
"""What races of many methods are about, by the name of their result."""

REMARKS = {
    "time-to-accuracy-all": " Plain MeZO had the rate of random directions here, 4e-3, and was thrown off; the next race is its own, at 2e-3.",
}
"""What has to be known of a race besides."""

RACERS = {
    "linear-probe": "linear probe",
    "informed": "informed probes",
    "backprop": "exact gradient over cached prompts",
    "feedback": "residual feedback",
    "twinpass": "random directions, activated adapter",
    "first-order": "LoRA with AdamW, whole prompts",
    "lean": "plain MeZO on LoRA",
}
"""Who races, in words."""


def _race(name: str, result: Result) -> str:
    if any("seconds_to" in r for r in result["methods"].values()):
        return _long_race(name, result)
    lines = [
        f"## Accuracy against time{', products in bfloat16' if 'first-order-bfloat16' in result['methods'] else ''}\n",
        f"{result['machine']['processor']}. Reviews, from the base model to {result['target']:.0%} on held-out rows or {result['limit_seconds']:.0f} s of training, evaluations not counted ({_link(name)}).\n",
        "| | seconds to the target | last | steps | peak memory |",
        "|---|---|---|---|---|",
    ]
    for method, r in result["methods"].items():
        last, reached = r["course"][-1], r["seconds_to_target"]
        lines.append(
            f"| {method} | {'not reached' if reached is None else f'{reached:.0f}'} | {last['accuracy']:.1%} after {last['seconds']:.0f} s "
            f"| {last['step']} | {_own_peak(result, r['peak_rss_bytes']) if method == 'twinpass' else _mib(r['peak_rss_bytes'])} |"
        )
    lines += [
        "",
        f"Inference peaks at {_mib(result['inference_peak_rss_bytes'])}.\n",
        f"![accuracy against time](images/bench/{name}.png)\n",
    ]
    return "\n".join(lines)


def _long_race(name: str, result: Result) -> str:
    """A race of many methods: seconds to each level, forward passes, memory."""
    nats = not result["config"]["task"].get("options")
    told = {level for r in result["methods"].values() for level in r["seconds_to"] if float(level) < result["target"]}
    levels = [] if nats else sorted(told)
    goal = f"{result['target']:g} nats" if nats else f"{result['target']:.0%}"
    lines = [
        f"## {'Nats' if nats else 'Accuracy'} against time: {RACES[name]}\n",
        f"{result['machine']['processor']}, commit {result['commit']}. From the base model to {goal} on held-out rows or {result['limit_seconds']:.0f} s of training, "
        f"evaluations and loading not counted, prompts' keys and values included ({_link(name)}). *Forwards* are passes of one row through the model; a backward pass counts as two, and a step of "
        f"twinpass's by its token-layers, a backward pass over answers not counted. The exact gradient is what is done where nothing is said, feedback its estimate by forward passes alone. In the last two, options share a pass where their inputs are the same.{REMARKS.get(name, '')}\n",
        f"| | {''.join(f's to {float(level):.0%} | ' for level in levels)}s to {goal} | last | forwards | peak memory |",
        f"|---|{'---|' * (len(levels) + 4)}",
    ]
    for method, r in result["methods"].items():
        last = r["course"][-1]
        value = f"{last['nats']:.3f}" if nats else f"{last['accuracy']:.1%}"
        taken = [r["seconds_to"].get(level) for level in levels] + [r["seconds_to_target"]]
        cells = " | ".join("-" if seconds is None else f"{seconds:.1f}" for seconds in taken)
        forwards = "-" if r["forwards"] is None else f"{r['forwards']:,.0f}"
        lines.append(
            f"| {RACERS.get(method, method)} | {cells} | {value} after {last['seconds']:.0f} s | {forwards} | {_mib(r['peak_rss_bytes'])} |"
        )
    lines += [
        "",
        f"Inference peaks at {_mib(result['inference_peak_rss_bytes'])}.\n",
        f"![{name}](images/bench/{name}.png)\n",
    ]
    return "\n".join(lines)


def _own_peak(result: Result, size: int | None) -> str:
    """Ours; marked where keys and values were kept, and a peak of three steps left most of them out."""
    kept = result["config"]["trainable"]["kind"] == "activated" and "peak_covers" not in result
    return _mib(size) + (" \\*" if kept else "")


def _mib(size: int | None) -> str:
    return "not measured" if size is None else f"{size / 2**20:,.0f} MiB"


if __name__ == "__main__":
    main()
