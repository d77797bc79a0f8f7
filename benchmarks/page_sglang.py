"""The sections on SGLang, from ``served-population.json``, ``serving.json`` and ``served-adapter.json``."""

from collections.abc import Mapping
from typing import Any

Result = Mapping[str, Any]
KINDS = ("activated", "lora")


def apart(found: Result) -> str:
    """Its share of the base model's rate where no prompts are shared; results from before it was measured have none."""
    return f"{found['of_apart']:.2f}" if "of_apart" in found else "-"


def population(result: Result) -> str:
    """What a population writes there, beside the base model."""
    lines = [
        "\n## A population that writes on SGLang\n",
        f"Greedy texts: {result['lanes']} lanes, {result['prompts']} prompts, {result['tokens']} tokens each "
        f"([file](../benchmarks/results/served-population.json), commit {result['commit'][:12]}, {result['machine']['processor']}, SGLang {result['versions']['sglang']}, "
        f"medians of {result['repeats']}; `make bench-served-population`). A step draws and loads its adapters, writes and rewards; **base model** writes as many texts. Both read all prompts in their turn, "
        "the base model each once; **prompts apart** is held against the base model where no two texts share a prompt, so that it reads as many as LoRA's lanes. The last column leaves out what texts of one token take: reading prompts and loading adapters.\n",
        "| | step | tokens a second | base model | of that | prompts apart | once prompts are read |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        found = result[kind]
        lines.append(
            f"| {kind} | {found['seconds']:.2f} s | {found['tokens_per_second']:.0f} | {found['bare']['tokens_per_second']:.0f} | {found['of_bare']:.2f} | {apart(found)} | {found['of_bare_prompts_read']:.2f} |"
        )
    return "\n".join([*lines, ""])


def serving(result: Result) -> str:
    """What another client of the server waits for and gets."""
    lines = [
        "\n## Another client of a server that trains\n",
        f"Seconds until the first token of a prompt of {result['prompt_tokens']} tokens that was never sent before, of an idle server and while {result['steps']} steps are trained on it "
        f"([file](../benchmarks/results/serving.json), commit {result['commit'][:12]}, {result['machine']['processor']}, SGLang {result['versions']['sglang']}; `make bench-serving`).\n",
        "| | requests | idle: median, p99 | training: median, p99 | times | same tokens | largest difference of log-probabilities |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        found = result[kind]
        idle, busy = found["idle"], found["training"]
        lines.append(
            f"| {kind} | {busy['requests']} | {idle['median']:.2f}, {idle['p99']:.2f} s | {busy['median']:.2f}, {busy['p99']:.2f} s | "
            f"{found['median_ratio']:.1f}, {found['p99_ratio']:.1f} | {found['same_tokens']:.0%} | {found['largest_difference']:.1e} |"
        )
    return "\n".join([*lines, ""])


def adapter(result: Result) -> str:
    """What a trained adapter answers there, and what it finds in the cache."""
    lines = [
        "\n## A trained adapter on SGLang\n",
        f"The demo's adapter, trained by default, is asked of {result['rows']} held-out rows, {result['tokens']:,} prompt tokens, all at once "
        f"([file](../benchmarks/results/served-adapter.json), commit {result['commit'][:12]}, {result['machine']['processor']}, SGLang {result['versions']['sglang']}, "
        f"medians of {result['repeats']} rounds; `make bench-served-adapter`). With twinpass's plugin it acts from its invocation tokens on; SGLang as it comes lets it act on every token. "
        f"**After the base model** has read the same prompts, what is left of its keys and values may be found. The embedded engine answers {result['embedded']:.1%} right.\n",
        "| acts | right | base model: seconds | after it: seconds, prompt tokens found | alone: seconds |",
        "|---|---|---|---|---|",
    ]
    for name, found in result["ways"].items():
        base, after, alone = found["base"], found["after"], found["alone"]
        lines.append(
            f"| {name} | {after['accuracy']:.1%} | {base['seconds']:.1f} | {after['seconds']:.1f}, {after['found']:.0%} | {alone['seconds']:.1f} |"
        )
    return "\n".join([*lines, ""])
