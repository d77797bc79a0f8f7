"""What choosing costs in writing: ``python benchmarks/damage.py --config FILE --replies FILE --json FILE``.

A choice task is trained as its configuration says, and once more with ``objective.regularise = "kl"``, on several seeds. Before and after, replies to
instructions are scored, with the adapter acting from the instruction's last token on: nats a token, up to 48 tokens each. Rows of replies have
``instruction``, ``input`` and ``output``.
"""

import argparse
import hashlib
import json
import shutil
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from demo import SEEDS, described
from rich.console import Console

from twinpass.cli.main import main as twinpass
from twinpass.cli.replay import restore
from twinpass.core import BASE, Request
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json

WAYS = ("none", "kl")
MOST = 64
"""Replies that are scored."""


def replies(file: Path, tokenizer: Any) -> list[Request]:
    """The first of those that are neither long nor of a few tokens."""
    found = []
    for line in file.read_text().splitlines():
        row = json.loads(line)
        given = f"Input: {row['input']}\n" if row["input"] else ""
        prompt = tokenizer(f"Instruction: {row['instruction']}\n{given}Response:")["input_ids"]
        reply = tokenizer(f" {row['output']}")["input_ids"][:48]
        if len(prompt) < 120 and len(reply) >= 12:
            found.append(Request(tuple(prompt), tuple(reply), len(prompt) - 1))
    return found[:MOST]


def run(config: Path, file: Path, seed: int, regularise: str, folder: Path) -> dict[str, Any]:
    """Train once; what was measured."""
    sets = (
        f"run.out={folder}",
        f"run.seed={seed}",
        "objective.kind=choice",
        f"objective.regularise={regularise}",
    )
    if twinpass(["train", str(config), *(part for each in sets for part in ("--set", each)), "--json"]) != 0:
        raise SystemExit(f"seed {seed} did not train")
    summary = json.loads((folder / "summary.json").read_text())
    session, step = restore(folder, None, Console(stderr=True))
    with closing(session.engine):
        asked = replies(file, session.tokenizer)
        after = -float(np.concatenate(session.engine.score(asked, [BASE]).values[0]).mean())
        session.engine.reset()
        before = -float(np.concatenate(session.engine.score(asked, [BASE]).values[0]).mean())
    keys = ("base_metric", "kept_metric", "train_seconds", "total_seconds", "steps")
    nats = {"nats_before": before, "nats_after": after, "damage": after - before}
    return {"seed": seed, "regularise": regularise, "step": step, "replies": len(asked), **nats} | {
        key: summary[key] for key in keys
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="a choice task")
    parser.add_argument("--replies", type=Path, required=True, help="JSON lines of instruction, input, output")
    parser.add_argument("--json", type=Path, required=True, help="where to write the result")
    args = parser.parse_args()
    about = {
        "config": described(args.config),
        "replies": {"name": args.replies.name, "sha256": hashlib.sha256(args.replies.read_bytes()).hexdigest()},
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }
    runs: list[dict[str, Any]] = []
    for seed in SEEDS:
        for regularise in WAYS:
            folder = Path(tempfile.mkdtemp())
            try:
                runs.append(run(args.config, args.replies, seed, regularise, folder / "run"))
            finally:
                shutil.rmtree(folder)
            write_json(args.json, {**about, "runs": runs})


if __name__ == "__main__":
    main()
