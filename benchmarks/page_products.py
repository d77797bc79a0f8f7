"""The section on linear layers by each way there is, from ``benchmarks/results/products*.json``, a file a processor."""

from collections.abc import Mapping
from typing import Any

Result = Mapping[str, Any]

OURS, WRITTEN = "float32", "written float32"
"""Weights formed where they are multiplied, and both lanes' weights written first."""


def section(results: Mapping[str, Result]) -> str:
    """What is faster on each processor, and a table of each."""
    if not results:
        return ""
    rows = next(iter(results.values()))["rows"]
    lines = [
        "\n## Linear layers\n",
        f"Those of one block of SmolLM2-135M under two lanes of {rows} rows, by turns, a file for each processor (`make bench-products`). *float32* and *bfloat16* form their weights where they are "
        "multiplied; *written float32* writes both lanes' weights first and multiplies by the library (oneDNN; at 6fbc54d MKL); *bare* is the library's products alone, without any noise (bfloat16: three of half the rows).\n",
    ]
    for name, result in results.items():
        lines += [
            f"{result['machine']['processor']}, cores used: {result['machine']['cores']}, commit {result['commit']} ([{name}.json](../benchmarks/results/{name}.json)). {verdict(result)}\n",
            "| | milliseconds | middle half | times our float32 |",
            "|---|---|---|---|",
        ]
        for way, taken in result["seconds"].items():
            lines.append(
                f"| {way} | {1e3 * taken['median']:.1f} | {1e3 * taken['lower_quartile']:.1f} to {1e3 * taken['upper_quartile']:.1f} "
                f"| {times(result, way):.2f} |"
            )
        lines.append("")
    return "\n".join(lines)


def verdict(result: Result) -> str:
    """Which way is faster on this processor, and which is taken there."""
    said = []
    if WRITTEN in result["seconds"]:
        share = times(result, WRITTEN)
        said.append(
            f"Forming is faster, and taken: writing takes {share:.2f} times as long."
            if share > 1
            else f"Writing is faster, {share:.2f} of the time; forming is taken all the same, as a row keeps its bits beside any other rows."
        )
    low = [name for name in result["seconds"] if name.startswith("bfloat16, ")]
    best = min(low, key=lambda name: times(result, name))
    share, offered = times(result, best), "bfloat16, amx" in low
    said.append(
        f"bfloat16 takes {share:.2f} of the time of float32 at the best, and is offered."
        if offered
        else f"bfloat16 takes {share:.2f} times as long as float32, and is refused."
    )
    return " ".join(said)


def times(result: Result, way: str) -> float:
    """How many times as long as our float32 a way takes: turn by turn, or, in older files, by medians."""
    if "times_float32" in result:
        return float(result["times_float32"][way]["median"])
    return float(result["seconds"][way]["median"] / result["seconds"][OURS]["median"])
