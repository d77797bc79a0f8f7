"""The model card of what a run has trained: what it is, how it was made, how well it does, how to load it."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from twinpass.config.load import handed_on
from twinpass.model.source import BUNDLED
from twinpass.report.interval import wilson
from twinpass.report.shown import shown
from twinpass.train.folder import RunFolder
from twinpass.use.settings import RunOrigin

BUNDLED_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The hub id of the bundled model."""

LOAD = {
    "peft": """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")""",
    "hf": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")""",
    "gguf-ready": """# in a checkout of llama.cpp: python convert_hf_to_gguf.py THIS_FOLDER --outfile model.gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")""",
}


def base_name(path: str) -> str:
    """The base model by its hub id where that is known, or else by its path."""
    return BUNDLED_ID if path == BUNDLED else path


def card(
    run: Path,
    settings: RunOrigin,
    kind: str,
    merge: bool,
    step: int | None,
    more: Sequence[tuple[str, str]] = (),
) -> str:
    """The text of ``README.md``: its front matter as the hub reads it, then facts of the run."""
    folder = RunFolder(run)
    values = folder.settings()
    base = base_name(settings.path)
    estimator = str(values.get("estimator", {}).get("kind", "")).lower()
    exact = estimator == "backprop"
    named = f"`{base}`" if base else "known to Python only"
    facts = [("base model", named), ("trained", _trained(settings, merge)), *_facts(run, values, step), *more]
    lines = [
        "---",
        *([f"base_model: {json.dumps(base)}"] if _has_an_id(base) else []),
        f"library_name: {'peft' if kind == 'peft' else 'transformers'}",
        "pipeline_tag: text-generation",
        f"tags: [twinpass{'' if exact or estimator == 'feedback' else ', mezo'}]",
        "---",
        "",
        f"# {run.resolve().name}",
        "",
        f"Fine-tuned {'along the exact gradient' if exact else 'with forward passes only'}, by twinpass.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts),
        "",
        "## Load it",
        "",
        "```python",
        LOAD[kind].format(base=base),
        "```",
        "",
        "## How it was made",
        "",
        "```toml",
        tomli_w.dumps(handed_on(values)).rstrip(),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _has_an_id(base: str) -> bool:
    """Whether a base model is named as the hub does; it refuses cards that name a folder."""
    try:
        validate_repo_id(base)
    except HFValidationError:
        return False
    return True


def _trained(settings: RunOrigin, merge: bool) -> str:
    kind = type(settings.trainable).__name__.lower()
    return f"{kind}, merged into the weights" if merge else kind


def _facts(run: Path, values: dict[str, Any], step: int | None) -> list[tuple[str, str]]:
    facts = [("seed", str(values.get("run", {}).get("seed", 0)))]
    for key in ("train", "eval"):
        given = values.get("task", {}).get(key, "")
        for path in map(Path, [given] if isinstance(given, str) else given):
            if path.is_file():
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                facts.append((f"{key} rows", f"`{path.name}`, sha256 `{digest}`"))
    summary = run / "summary.json"
    if step is not None:
        facts.append(("step", str(step)))
    elif summary.is_file():
        facts += _results(json.loads(summary.read_text(encoding="utf-8")))
    return facts


def _results(summary: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [("steps", str(summary["steps"])), ("hit rate", f"{summary['hit_rate']:.1%}")]
    name, value = summary["metric_name"], summary.get("kept_metric", summary["final_metric"])
    if value is not None:
        text = f"{shown(name, value)} on {summary['held_out']} rows"
        if name == "accuracy":
            low, high = wilson(value, summary["held_out"])
            text += f" (95% {low:.1%} to {high:.1%})"
        facts.append((f"held-out {name}", f"{text}; the base model {shown(name, summary['base_metric'])}"))
    return facts
