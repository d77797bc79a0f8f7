"""Race on rows of public data sets, which are not part of this repository: ``python benchmarks/race.py trec FILE --json OUT``.

FILE is TREC's ``train.txt`` (``COARSE:fine question`` lines), or GSM8K's JSON lines. The result holds its SHA-256, not its rows.
"""

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from rich.console import Console

from twinpass.bench.race import race, suiting
from twinpass.cli.bench import EVERY, joined
from twinpass.config.load import load_config
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json

CLASSES = {
    "ABBR": "abbreviation",
    "ENTY": "entity",
    "DESC": "description",
    "HUM": "person",
    "LOC": "location",
    "NUM": "number",
}
ADAPTER = {"kind": "activated", "rank": 8, "alpha": 16.0, "targets": ["q_proj", "k_proj", "v_proj", "o_proj"]}
Rows = list[dict[str, Any]]


def trec(text: str) -> Rows:
    """Questions and what their answers are."""
    split = [line.split(" ", 1) for line in text.splitlines() if line.strip()]
    return [{"question": question.strip(), "label": CLASSES[kind.split(":")[0]]} for kind, question in split]


def gsm8k(text: str) -> Rows:
    """Questions, and the first words of their worked answers."""
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    return [{"question": row["question"], "answer": " ".join(row["answer"].split()[:WORDS])} for row in rows]


WORDS = 24


@dataclass(frozen=True)
class Kind:
    """How a file is read, its task, and the target of the race: an accuracy, or nats."""

    read: Callable[[str], Rows]
    task: Mapping[str, Any]
    target: float
    batch: int


KINDS = {
    "trec": Kind(
        trec,
        {
            "prompt": "Question: {question}\n",
            "suffix": "Type:",
            "options": [f" {name}" for name in CLASSES.values()],
            "labels": list(CLASSES.values()),
        },
        0.90,
        16,
    ),
    "gsm8k": Kind(
        gsm8k,
        {
            "kind": "completion",
            "prompt": "Question: {question}\n",
            "suffix": "Answer:",
            "completion": " {answer}",
            "end": False,
        },
        1.2,
        8,
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read rows, race, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--target", type=float)
    parser.add_argument("--methods", nargs="+", default=())
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args(arguments)
    kind, console = KINDS[args.kind], Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(_write(Path(folder), kind, args))
        found = race(
            config,
            args.target or kind.target,
            args.seconds,
            EVERY,
            lambda method, step, seconds, value: console.print(
                f"{method}: {value:.3f} after {step} steps, {seconds:.1f} s"
            ),
            args.methods or [name for name in suiting(config) if name != "naive"],
        )
    values = {name: keys for name, keys in config.values.items() if name != "run"}
    values["task"] = {**values["task"], "train": args.file.name, "eval": args.file.name}
    rows = {
        "rows_sha256": hashlib.sha256(args.file.read_bytes()).hexdigest(),
        "train_rows": args.train,
        "held_out": args.held_out,
    }
    result = {
        "workload": args.kind,
        "config": values,
        **rows,
        "commit": commit(),
        **found,
        "machine": machine(),
        "versions": versions(),
    }
    write_json(args.json, joined(json.loads(args.json.read_text()), result) if args.json.exists() else result)


def _write(folder: Path, kind: Kind, args: argparse.Namespace) -> Path:
    rows = kind.read(args.file.read_text(encoding="utf-8", errors="replace"))
    parts = {"train": rows[: args.train], "eval": rows[args.train : args.train + args.held_out]}
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    values = {
        "model": {"path": args.model},
        "trainable": ADAPTER,
        "task": {**kind.task, "train": "train.jsonl", "eval": "eval.jsonl"},
        "estimator": {"kind": "spsa"},
        "optimizer": {"lr": 4e-3, "steps": 400, "batch_size": kind.batch},
        "reuse": {"policy": "activated", "budget": "1GiB"},
        "engine": {"device": "cpu", "noise": "gaussian"},
        "run": {"out": "run", "seed": 1},
    }
    path = folder / "race.toml"
    path.write_text(tomli_w.dumps(values))
    return path


if __name__ == "__main__":
    main()
