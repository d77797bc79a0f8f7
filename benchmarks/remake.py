"""Make results that are older than their code again, in parts: ``python benchmarks/remake.py [--list] [--only NAME ...] [--minutes N]``.

Prints what is older first. Parts run one after another, the shortest first; one that fails does not stop the others, and what this machine
cannot make is left with the reason. Stopped half way, the next call goes on with what is still older. Commit before: a result names its commit.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import freshness

WORKLOADS = {
    "activated-0shot": 4,
    "reviews-0shot": 5,
    "generation": 5,
    "options": 10,
    "activated-8shot": 10,
    "reviews-8shot": 12,
    "time-to-accuracy": 12,
}


@dataclass(frozen=True)
class Part:
    """Make's ``target``, the ``results`` that it makes, and about how many ``minutes`` it takes on two cores.

    ``needs``: a variable that has to be given, "amx_bf16" (the processor's) or "cuda"; "": nothing.
    """

    target: str
    results: tuple[str, ...]
    minutes: int
    needs: str = ""


PARTS: Sequence[Part] = (
    Part("bench-noise", ("noise",), 1),
    Part("bench-lattice", ("lattice",), 2),
    Part("bench-products", ("products",), 3),
    Part("bench-demo", ("demo",), 4),
    Part("bench-memory", ("memory",), 4),
    Part("bench-reuse", ("reuse",), 6),
    Part("bench-population", ("population",), 8),
    *(Part(f"bench-workload-{name}", (f"bench-{name}",), minutes) for name, minutes in WORKLOADS.items()),
    *(
        Part(f"bench-bfloat16-{name}", (f"bench-{name}-bfloat16",), WORKLOADS[name], "amx_bf16")
        for name in ("activated-0shot", "reviews-0shot", "time-to-accuracy")
    ),
    Part("bench-race", ("bench-time-to-accuracy-all",), 20),
    Part("bench-race-trec", ("bench-time-to-accuracy-trec",), 20, "ROWS_TREC"),
    Part("bench-race-gsm8k", ("bench-time-to-accuracy-gsm8k",), 20, "ROWS_GSM8K"),
    Part("bench-merged", ("merged",), 8),
    Part("bench-serving", ("serving",), 6),
    Part("bench-served-population", ("served-population",), 10),
    Part("bench-served-adapter", ("served-adapter",), 8),
    Part("bench-sglang", ("sglang",), 10),
    Part(
        "bench-served-learning",
        ("served-learning-informed", "served-learning-activated", "served-learning-embedded"),
        20,
    ),
    Part("chaos", ("chaos",), 10),
    Part("fuzz", ("fuzz",), 10),
    Part("long-run", ("long-run",), 20),
    Part("chaos-sglang", ("chaos-sglang",), 30),
    Part("bench-scale", ("scale",), 30),
    Part("bench-models", ("models",), 20),
    Part("bench-toolbox", ("toolbox",), 20, "ROWS_TREC"),
    Part("bench-rewards", ("rewards-1", "rewards-2", "rewards-3"), 35),
    Part("bench-reward-learners", ("reward-learners-1", "reward-learners-2", "reward-learners-3"), 50),
    Part("mutants", ("mutants",), 15),
    Part("bench-adaptive", ("adaptive",), 40),
    Part("bench-tasks", ("tasks",), 240, "TASKS_FOLDER"),
    Part("bench-training", ("training",), 90),
    Part("bench-profile", ("profile-8shot", "profile-8shot-q8", "profile-32shot"), 120),
    Part("bench-gpu", ("gpu",), 10, "cuda"),
    Part("bench-gpu-kernels", ("gpu-kernels",), 5, "cuda"),
)

BY_HAND: Mapping[str, str] = {
    "learning-*": "make bench-learning CONFIG=FILE NAME=WORD, with that task's rows (and SET=..., as the file says under set)",
    "rewards-*-beta": "benchmarks/rewards.py --seeds 2 --set task.beta=0.2 --set optimizer.steps=36 --json FILE",
    "merged-*": "make bench-merged-own CONFIG=FILE NAME=WORD, with that task's rows",
    "damage": "make bench-damage CONFIG=FILE REPLIES=FILE, with a choice task and replies to instructions",
    "bench-rewards*": "twinpass bench rewards --out FILE, with the rows of GSM8K",
    "adaptive-*": "a variant of bench-adaptive at the commit that it names",
    "*-amx": "another processor's",
    "*-xeon": "another processor's",
    "*-epyc": "another processor's",
    "bench-time-to-accuracy-all-lean": "twinpass bench time-to-accuracy --target 0.9 --seconds 90 --methods lean",
}
"""Results that no part makes, and where they come from."""


def missing(part: Part, features: str, given: Mapping[str, str], *, cuda: bool) -> str | None:
    """What this machine or call lacks for a part; None: nothing."""
    if part.needs == "amx_bf16" and part.needs not in features.split():
        return "this processor has no AMX"
    if part.needs == "cuda" and not cuda:
        return "no CUDA device"
    if part.needs.isupper() and not given.get(part.needs):
        return f"give {part.needs}=... to make"
    return None


def stale(part: Part, states: Mapping[str, str]) -> list[str]:
    """Those of a part's results that are not up to date; missing ones are not."""
    return [name for name in part.results if states.get(name) != "up to date"]


@dataclass(frozen=True)
class Outcome:
    """What came of the parts: names of results that were made, and of those that are left, with the reason."""

    made: list[str]
    left: dict[str, str]


def remake(
    parts: Sequence[Part],
    why_not: Callable[[Part], str | None],
    states: Callable[[], Mapping[str, str]],
    make: Callable[[str], bool],
    minutes: float,
) -> Outcome:
    """Run parts with stale results, the shortest first, as long as they are likely to end within ``minutes`` in all."""
    started, now, made, left = time.monotonic(), states(), list[str](), dict[str, str]()
    for part in sorted(parts, key=lambda part: part.minutes):
        names = stale(part, now)
        if not names:
            continue
        reason = why_not(part)
        if reason is None and (time.monotonic() - started) / 60 + part.minutes > minutes:
            reason = f"takes about {part.minutes} minutes more"
        if reason is None:
            print(f"--- {part.target}: {', '.join(names)}, about {part.minutes} minutes", flush=True)
            reason = None if make(part.target) else f"make {part.target} failed"
            now = states()
        again = stale(part, now) if reason is None else names
        made += [name for name in names if name not in again]
        left |= dict.fromkeys(again, reason or f"make {part.target} has not made it of this commit")
    return Outcome(made, left)


def _states() -> dict[str, str]:
    return {age.name: age.state for age in freshness.ages()}


def _make(target: str) -> bool:
    return subprocess.run(["make", "--no-print-directory", target], cwd=freshness.ROOT, check=False).returncode == 0


def _features() -> str:
    file = Path("/proc/cpuinfo")
    return file.read_text() if file.is_file() else ""


def main() -> int:
    """What is older, then what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="print what is older, make nothing")
    parser.add_argument("--only", nargs="+", default=[], help="names of results, with * for many")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no part that would end later")
    asked = parser.parse_args()
    chosen = [
        part
        for part in PARTS
        if not asked.only or any(fnmatch(name, only) for name in part.results for only in asked.only)
    ]
    features, cuda, states = _features(), Path("/dev/nvidia0").exists(), _states()

    def why_not(part: Part) -> str | None:
        return missing(part, features, os.environ, cuda=cuda)

    for part in sorted(chosen, key=lambda part: part.minutes):
        for name in stale(part, states):
            note = why_not(part) or f"about {part.minutes} minutes"
            print(f"{states.get(name, 'missing'):12}{name:40}{note}")
    for pattern, source in BY_HAND.items():
        for name, state in states.items():
            if fnmatch(name, pattern) and state != "up to date" and not asked.only:
                print(f"{state:12}{name:40}{source}")
    if asked.list:
        return 0
    outcome = remake(chosen, why_not, _states, _make, asked.minutes)
    if outcome.made:
        subprocess.run([sys.executable, str(freshness.ROOT / "benchmarks/page.py")], check=True)
    print(f"\nmade: {', '.join(outcome.made) or 'nothing'}")
    for name, reason in outcome.left.items():
        print(f"left: {name:40}{reason}")
    return 1 if any("make " in reason and "give " not in reason for reason in outcome.left.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
