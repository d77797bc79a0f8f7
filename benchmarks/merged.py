"""What comes of an activated adapter that is merged into the model's weights, on several seeds: ``python benchmarks/merged.py --json FILE``.

The demo, or ``--config FILE``, is trained by informed probes and along the exact gradient. Both adapters act on the answer alone; merged,
they act on all tokens. Held-out accuracy of each, before and after.
"""

import argparse
import io
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from demo import CONFIG, SEEDS, described

from twinpass.cli.main import main as twinpass
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json

WAYS: Mapping[str, Sequence[str]] = {"informed": ("trainable.kind=informed",), "exact gradient": ()}


def run(config: Path, seed: int, sets: Sequence[str], folder: Path) -> dict[str, Any]:
    """Train and merge once; what was measured."""
    chosen = [part for each in (f"run.out={folder / 'run'}", f"run.seed={seed}", *sets) for part in ("--set", each)]
    if twinpass(["train", str(config), *chosen, "--json"]) != 0:
        raise SystemExit(f"seed {seed} did not train")
    summary, said = json.loads((folder / "run/summary.json").read_text()), io.StringIO()
    with redirect_stdout(said):
        merging = ["--format", "hf", "--merge", "--everywhere", "--out", str(folder / "merged"), "--json"]
        if twinpass(["export", str(folder / "run"), *merging]) != 0:
            raise SystemExit(f"seed {seed} was not merged")
    found = json.loads(said.getvalue().splitlines()[-1])["held_out"]
    keys = ("base_metric", "train_seconds", "total_seconds", "peak_rss_bytes", "held_out", "steps")
    return {"seed": seed, "adapter": found["adapter"], "merged": found["merged"], **{key: summary[key] for key in keys}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--config", type=Path, default=CONFIG, metavar="FILE")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    args = parser.parse_args()
    about = {"config": described(args.config), "commit": commit(), "machine": machine(), "versions": versions()}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    for seed in args.seeds:
        for name, sets in WAYS.items():
            folder = Path(tempfile.mkdtemp(prefix="merged-"))
            try:
                runs[name].append(run(args.config, seed, sets, folder))
            finally:
                shutil.rmtree(folder)
            write_json(args.json, {"ways": {key: list(value) for key, value in WAYS.items()}, "runs": runs, **about})


if __name__ == "__main__":
    main()
