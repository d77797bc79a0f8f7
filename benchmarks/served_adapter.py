"""An adapter that was trained by default, served by SGLang: ``python benchmarks/served_adapter.py --json FILE``.

Runs where SGLang is installed (``make bench-served-adapter``). The demo, or ``--config FILE`` whose options are of one token each, is trained, its adapter exported for PEFT, and its held-out
rows are asked of SGLang: of the base model, then of the adapter. With twinpass's plugin it acts from its invocation tokens on; without, which is SGLang as it comes, on every token, as LoRA does.
Both find what is in the cache: it is emptied before each round, or before the adapter is asked, too (``alone``).
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import sglang
from demo import CONFIG, described

import twinpass
from twinpass.cli.main import main as command
from twinpass.config.compose import build
from twinpass.config.load import load_config
from twinpass.engine.sglang.calls import Call, reply_of
from twinpass.engine.sglang.in_process import CPU, InProcess
from twinpass.engine.sglang.server import Server, Variant
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json
from twinpass.task.example import Example

ARGUMENTS = {**CPU, "dtype": "float32", "log_level": "warning", "enable_lora": True, "max_total_tokens": 65536}
WAYS = {"from its invocation on": "twinpass", "on every token": "none"}
"""What an adapter acts on, and the plugins that SGLang loads."""


def ask(server: Server, rows: Sequence[Example], adapter: str | None) -> dict[str, Any]:
    """All rows at once: seconds, the share of prompt tokens that was found in the cache, the share of right answers."""
    calls = [Call(row.prompt, len(row.prompt) - 1, None, [option[0] for option in row.options]) for row in rows]
    began = time.perf_counter()
    metas = server.score(calls, [Variant(adapter)] * len(calls))
    seconds = time.perf_counter() - began
    replies = [reply_of(call, meta) for call, meta in zip(calls, metas, strict=True)]
    scores = [[reply.last[token] for token in call.last] for call, reply in zip(calls, replies, strict=True)]
    right = [max(own) == own[row.label] for own, row in zip(scores, rows, strict=True)]
    found = sum(reply.cached for reply in replies) / sum(len(row.prompt) for row in rows)
    return {"seconds": seconds, "found": found, "accuracy": sum(right) / len(right)}


def served(model: Path, adapter: Path, plugins: str, rows: Sequence[Example], repeats: int) -> dict[str, Any]:
    """Rounds of base model and adapter in turn, the first left out of the medians."""
    os.environ["SGLANG_PLUGINS"] = plugins
    rounds: dict[str, list[dict[str, Any]]] = {"base": [], "after": [], "alone": []}
    transport = InProcess(str(model), {**ARGUMENTS, "lora_paths": {"mine": str(adapter)}})
    with closing(Server(transport)) as server:
        for _ in range(repeats + 1):
            transport._engine.flush_cache()
            rounds["base"].append(ask(server, rows, None))
            rounds["after"].append(ask(server, rows, "mine"))
            transport._engine.flush_cache()
            rounds["alone"].append(ask(server, rows, "mine"))
    return {
        name: {
            "seconds": statistics.median(each["seconds"] for each in own[1:]),
            "found": own[-1]["found"],
            "accuracy": own[-1]["accuracy"],
        }
        for name, own in rounds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--config", type=Path, default=CONFIG, metavar="FILE")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="served-") as scratch:
        run, adapter, folder = (Path(scratch) / name for name in ("run", "adapter", "model"))
        if command(["train", str(args.config), "--set", f"run.out={run}", "--json"]) != 0:
            raise SystemExit("the configuration did not train")
        if command(["export", str(run), "--format", "peft", "--out", str(adapter), "--json"]) != 0:
            raise SystemExit("the adapter was not exported")
        config = load_config(args.config, [f"run.out={run}"])
        session = build(config)
        rows = session.plan.held_out
        session.engine.close()
        if any(len(option) != 1 for row in rows for option in row.options):
            raise SystemExit(f"{args.config}: options of one token each are asked for")
        for part in twinpass.load_model(config.model.path):
            part.save_pretrained(folder)
        own = json.loads((run / "summary.json").read_text())["kept_metric"]
        found = {name: served(folder, adapter, plugins, rows, args.repeats) for name, plugins in WAYS.items()}
    about = {"commit": commit(), "machine": machine(), "versions": {**versions(), "sglang": sglang.__version__}}
    size = {"rows": len(rows), "tokens": sum(len(row.prompt) for row in rows), "repeats": args.repeats}
    write_json(args.json, {"config": described(args.config), **size, "embedded": own, "ways": found, **about})


if __name__ == "__main__":
    main()
