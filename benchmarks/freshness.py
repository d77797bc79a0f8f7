"""Which result files are older than the code they measure: ``python benchmarks/freshness.py``.

A file is as old as the commit that it names. It is older than its code if a later commit touched one of its sources.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
PACKAGE = "src/twinpass"
STEP = tuple(
    f"{PACKAGE}/{part}"
    for part in ("cache", "engine/embedded", "estimate", "model", "objective", "perturb", "reuse", "schedule", "train")
)
"""What a training step consists of."""
DEFAULTS = (f"{PACKAGE}/config", f"{PACKAGE}/task")
"""What fills in whatever a configuration leaves out."""

SOURCES: Sequence[tuple[str, tuple[str, ...]]] = (
    ("bench-*", (*STEP, f"{PACKAGE}/bench")),
    ("population", (*STEP, f"{PACKAGE}/bench")),
    ("profile-*", (*STEP, f"{PACKAGE}/analysis")),
    ("noise", (f"{PACKAGE}/perturb", "benchmarks/noise.py")),
    ("products*", (f"{PACKAGE}/perturb", f"{PACKAGE}/engine/embedded/linear", "benchmarks/products.py")),
    ("lattice", (*STEP, "benchmarks/lattice.py")),
    ("sglang", (f"{PACKAGE}/engine/sglang", f"{PACKAGE}/perturb", "benchmarks/radix_attention.py")),
    (
        "served-population",
        (
            f"{PACKAGE}/engine/sglang",
            f"{PACKAGE}/perturb",
            f"{PACKAGE}/bench/population.py",
            "benchmarks/served_population.py",
        ),
    ),
    (
        "served-adapter",
        (*STEP, *DEFAULTS, f"{PACKAGE}/engine/sglang", "benchmarks/served_adapter.py", "examples/reviews.toml"),
    ),
    ("serving", (f"{PACKAGE}/engine/sglang", f"{PACKAGE}/perturb", "benchmarks/serving.py")),
    ("gpu-kernels", (f"{PACKAGE}/perturb", "benchmarks/gpu_kernels.py")),
    ("adaptive*", (*STEP, "benchmarks/adaptive.py")),
    ("merged*", (*STEP, *DEFAULTS, f"{PACKAGE}/use", "benchmarks/merged.py", "benchmarks/demo.py")),
    (
        "reward-learners-*",
        (*STEP, *DEFAULTS, "benchmarks/reward_learners.py", "benchmarks/rewards.py", "examples/rewards.py"),
    ),
    ("damage", (*STEP, *DEFAULTS, "benchmarks/damage.py", "benchmarks/demo.py")),
    ("toolbox", (*STEP, "benchmarks/toolbox.py", "benchmarks/fixed_inputs.py", "benchmarks/race.py")),
    ("demo", (*STEP, *DEFAULTS, "benchmarks/demo.py", "examples/reviews.toml")),
    (
        "models",
        (
            *STEP,
            *DEFAULTS,
            f"{PACKAGE}/use",
            "benchmarks/models_tiny.py",
            "benchmarks/models_tried.py",
        ),
    ),
    ("tasks", (*STEP, *DEFAULTS, "benchmarks/tasks.py")),
    (
        "served-learning-*",
        (*STEP, *DEFAULTS, f"{PACKAGE}/engine/sglang", "benchmarks/demo.py", "examples/reviews.toml"),
    ),
    ("learning-*", (*STEP, *DEFAULTS, "benchmarks/demo.py")),
    ("rewards-*", (*STEP, *DEFAULTS, "benchmarks/rewards.py", "examples/rewards.py")),
    ("mutants", ("src/twinpass", "tests")),
    ("chaos", (PACKAGE, "tests/chaos.py", "tests/chaos_runs.py")),
    ("chaos-sglang", (PACKAGE, "tests/chaos_sglang.py")),
    ("fuzz", (PACKAGE, "tests/fuzz")),
    ("long-run", (PACKAGE, "benchmarks/long_run.py")),
    ("*", (*STEP, "benchmarks/{name}.py")),
)
"""Result files by name, and what they measure; the first that fits counts."""

State = Literal["up to date", "older", "unknown"]


@dataclass(frozen=True)
class Age:
    """A result file, the commit it is of, and the last one that touched its sources."""

    name: str
    measured: str
    touched: str
    state: State


def sources_of(name: str) -> tuple[str, ...]:
    """Files and folders that a result depends on."""
    paths = next(paths for pattern, paths in SOURCES if fnmatch(name, pattern))
    return tuple(path.replace("{name}", name) for path in paths)


def age_of(file: Path, root: Path = ROOT) -> Age:
    """How a result file stands to the checkout at ``root``."""
    measured = _commit_of(json.loads(file.read_text()))
    touched = _git(root, "rev-list", "-1", "HEAD", "--", *sources_of(file.stem)) or ""
    if not measured or measured.endswith("-dirty") or not _known(root, measured) or not touched:
        return Age(file.stem, measured or "not named", touched[:7], "unknown")
    current = subprocess.run(["git", "-C", str(root), "merge-base", "--is-ancestor", touched, measured], check=False)
    return Age(file.stem, measured[:7], touched[:7], "older" if current.returncode else "up to date")


def ages(folder: Path = RESULTS, root: Path = ROOT) -> list[Age]:
    """All result files, by name."""
    return [age_of(file, root) for file in sorted(folder.glob("*.json"))]


def head(root: Path = ROOT) -> str:
    """The commit that is checked out."""
    return (_git(root, "rev-parse", "--short=7", "HEAD") or "unknown")[:7]


def section() -> str:
    """A table for the page of benchmarks."""
    lines = [
        "\n## How old the results are\n",
        f"As of commit {head()}, by `python benchmarks/freshness.py`, which compares the commit that a file names with the last one that touched the sources it measures "
        "(a file that moved was touched). `make results` makes what is older again, at one clean commit.\n",
        "| result | measured at | sources touched at | |",
        "|---|---|---|---|",
    ]
    for age in ages():
        link = f"[{age.name}](../benchmarks/results/{age.name}.json)"
        lines.append(f"| {link} | {age.measured} | {age.touched} | {age.state} |")
    return "\n".join([*lines, ""])


def _commit_of(result: Mapping[str, Any]) -> str:
    """The commit that a result names, or that all of its runs name; empty where there is no such one."""
    named = {result["commit"]} if "commit" in result else {run.get("commit") for run in result.get("runs", ())}
    return str(named.pop() or "") if len(named) == 1 else ""


def _known(root: Path, commit: str) -> bool:
    return _git(root, "cat-file", "-t", commit) == "commit"


def _git(root: Path, *command: str) -> str | None:
    done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


if __name__ == "__main__":
    for found in ages():
        print(f"{found.state:12}{found.name:40}measured at {found.measured}, sources touched at {found.touched}")
