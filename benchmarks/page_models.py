"""The part of docs/models.md between its markers, from ``benchmarks/results/models.json``."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]
BEGIN, END = "<!-- written by benchmarks/page_models.py -->\n", "<!-- until here -->\n"

COLUMNS = {
    "packs": "kept",
    "options": "options",
    "texts": "texts",
    "written": "written",
    "lora": "`lora`",
    "full": "`full`",
    "informed": "`informed`",
    "random": "random",
}
"""Trials, and what their columns are called."""

BRIEF: Sequence[tuple[str, str]] = (
    (r"seen in packed passes", ""),
    (r"reads tokens that come later", "reads what comes later"),
    (r"attention registry, layer by layer", "some layers are recurrent"),
    (r"does not go through the attention registry", "attention of its own, or none"),
    (r"takes no position_ids", "takes no positions"),
    (r"sliding window on", "its sliding window is its own affair"),
    (r"attention is chunked", "chunked attention"),
    (r"attends more than once", "a layer attends more than once"),
    (r"which packing leaves out", "attention with terms of its own"),
    (r"in float64 its scores differ", "packed scores would be others"),
    (r"rotary embedding follows the longest", "positions scaled by the longest text"),
    (r"makes logits of more than one state", "logits of more than one state"),
    (r"for the experts", "PEFT would lose adapters of its experts' names"),
    (r"PEFT refuses adapters there", "PEFT refuses adapters there"),
    (r"outputs, the residual stream", "names of output projections are others' too"),
    (r"as wide as its residual stream", "output projections have other names, or PEFT cannot activate them"),
    (r"match no linear layer", "layers have other names"),
    (r"took? no part in the|take no part in the", "some weights do nothing in short texts"),
    (
        r"PEFT loads what was trained to scores",
        "PEFT makes other scores of an activated adapter: warned of, `lora` does not",
    ),
    (r"not a finite number", "losses were no numbers"),
    (r"owns trainable parameters|not a tensor of rows|lane by lane", "weights in modules that cannot run lane by lane"),
)
"""What is said of reasons, by what stands in them; nothing of those that follow from another."""


def section(result: Result) -> str:
    """Who does everything, a line for each that does not, and who was not tried."""
    types: Mapping[str, Result] = result["types"]
    built = {kind: found for kind, found in types.items() if _works(found, "built")}
    whole = [kind for kind, found in built.items() if all(_works(found, trial) for trial in COLUMNS)]
    most = {kind: found for kind, found in built.items() if kind not in whole}
    versions = result["versions"]
    lines = [
        f"{len(types)} types of transformers {versions['transformers']}, PEFT {versions['peft']}, commit {result['commit']} "
        "([models.json](../benchmarks/results/models.json); `make bench-models`).\n",
        f"**Everything** ({len(whole)}): {', '.join(whole)}.\n",
        f"**All but some** ({len(most)}):\n",
        f"| type | {' | '.join(COLUMNS.values())} | why not |",
        f"|---|{'---|' * (len(COLUMNS) + 1)}",
        *(_line(kind, found) for kind, found in most.items()),
        "",
    ]
    stopped = {kind: f" ({found['stopped']})" if "stopped" in found else "" for kind, found in types.items()}
    if apart := [f"{kind}{stopped[kind]}" for kind in types if kind not in built]:
        lines += [
            f"**Not tried** ({len(apart)}), as no tiny model of theirs could be built here from a configuration alone: {', '.join(apart)}.\n"
        ]
    return "\n".join(lines)


def put(page: str, text: str) -> str:
    """The page with this text between its markers."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}"


def _works(found: Result, trial: str) -> bool:
    return bool(found.get(trial, {}).get("works"))


def _line(kind: str, found: Result) -> str:
    failed = {trial: found[trial]["why"] for trial in COLUMNS if trial in found and not _works(found, trial)}
    brief = {trial: _brief(each) for trial, each in failed.items()}
    if re.match(r"\w+Error: ", packs := brief.get("packs", "")) and [*brief.values()].count(packs) == 1:
        brief["packs"] = "its layers do not run in a packed pass"
    why = dict.fromkeys(brief.values())
    if "stopped" in found:
        why[found["stopped"]] = None
    marks = " | ".join("yes" if _works(found, trial) else "no" for trial in COLUMNS)
    return f"| {kind} | {marks} | {'; '.join(filter(None, why))} |"


def _brief(why: str) -> str:
    for pattern, words in BRIEF:
        if re.search(pattern, why):
            return words
    return re.split(r"[;(|]|\. ", why)[0].strip()[:80]
