"""What other clients of a SGLang server see while a run trains adapters there: ``python benchmarks/serving.py --json FILE``.

One client asks for one token at a time, with a prompt that it has never sent before, so that what it waits for is the time to the first
token: of an idle server, and while activated adapters and ordinary ones train. What it gets is compared with what the idle server says.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
from real_sglang import SECRET, TOLERANCE, RunningServer

from twinpass.engine.sglang.address import KEY
from twinpass.model.load import load
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json

CONFIG = Path(__file__).parent.parent / "examples" / "reviews-mezo.toml"
LENGTH = 60
"""Tokens of a prompt."""

Answer = tuple[int, float]
"""The likeliest next token and its log-probability."""


def ask(client: httpx.Client, prompt: Sequence[int]) -> tuple[float, Answer]:
    """Seconds until the answer was there, and the answer."""
    asked = {
        "input_ids": list(prompt),
        "sampling_params": {"max_new_tokens": 1, "temperature": 0},
        "return_logprob": True,
    }
    started = time.perf_counter()
    answered = client.post("/generate", json=asked).raise_for_status()
    seconds = time.perf_counter() - started
    (logprob, token, *_) = answered.json()["meta_info"]["output_token_logprobs"][0]
    return seconds, (int(token), float(logprob))


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    return {"requests": len(seconds), "median": float(np.median(seconds)), "p99": float(np.percentile(seconds, 99))}


def flush(client: httpx.Client) -> None:
    """Let the server forget all prompts."""
    until = time.monotonic() + 60
    while client.post("/flush_cache").status_code != httpx.codes.OK and time.monotonic() < until:
        time.sleep(0.2)


def beside(client: httpx.Client, server: RunningServer, kind: str, steps: int, every: float) -> dict[str, Any]:
    """Train some steps and ask all the while, then ask the idle server the same."""
    generator = np.random.default_rng(7)
    with tempfile.TemporaryDirectory(prefix="serving-") as place:
        sets = {
            "engine.kind": "sglang",
            "engine.url": server.url,
            "model.path": server.folder,
            "trainable.kind": kind,
            "reuse.policy": "auto",
            "reuse.budget": "1GiB",  # the server has its own
            "optimizer.steps": steps,
            "task.eval_rows": 8,
            "run.eval_every": 0,
            "run.out": Path(place) / "run",
        }
        words = [word for name, value in sets.items() for word in ("--set", f"{name}={value}")]
        process = subprocess.Popen([sys.executable, "-m", "twinpass", "train", str(CONFIG), *words, "--json"])
        journal = Path(place) / "run" / "journal.jsonl"
        while process.poll() is None and not (journal.exists() and '"step"' in journal.read_text()):
            time.sleep(0.1)
        prompts, busy, told = list[list[int]](), list[float](), list[Answer]()
        while process.poll() is None:
            prompts.append(generator.integers(100, 40_000, LENGTH).tolist())
            seconds, answer = ask(client, prompts[-1])
            busy.append(seconds)
            told.append(answer)
            time.sleep(every)
        if process.returncode not in (0, 3):
            raise SystemExit(f"the run with {kind} ended with {process.returncode}")
    flush(client)
    idle, right = list[float](), list[Answer]()
    for prompt in prompts:
        seconds, answer = ask(client, prompt)
        idle.append(seconds)
        right.append(answer)
        time.sleep(every)
    found = {"idle": summary(idle), "training": summary(busy)}
    off = max(abs(own - other) for (_, own), (_, other) in zip(told, right, strict=True))
    return {
        **found,
        "median_ratio": found["training"]["median"] / found["idle"]["median"],
        "p99_ratio": found["training"]["p99"] / found["idle"]["p99"],
        "same_tokens": float(np.mean([own == other for (own, _), (other, _) in zip(told, right, strict=True)])),
        "largest_difference": off,
        "tolerance": TOLERANCE,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=float, default=0.2, help="seconds between two requests of the other client")
    parser.add_argument("--layers", type=int, metavar="N", help="of the model, for a trial (default: all)")
    args = parser.parse_args()
    os.environ[KEY] = SECRET
    with tempfile.TemporaryDirectory(prefix="serving-model-") as place:
        folder = Path(place) / "model"
        model, tokenizer = load("smollm2")
        if args.layers is not None:
            del cast(Any, model).model.layers[args.layers :]
            model.config.num_hidden_layers = args.layers
        for part in (model, tokenizer):
            part.save_pretrained(folder)
        server = RunningServer(folder, Path(place) / "log")
        server.start()
        try:
            headers = {"Authorization": f"Bearer {SECRET}"}
            with httpx.Client(base_url=server.url, headers=headers, timeout=300, trust_env=False) as client:
                ask(client, range(100, 100 + LENGTH))
                found = {kind: beside(client, server, kind, args.steps, args.every) for kind in ("activated", "lora")}
        finally:
            server.kill()
    about = {"commit": commit(), "machine": machine(), "versions": {**versions(), "sglang": version("sglang")}}
    write_json(
        args.json,
        {"steps": args.steps, "layers": args.layers, "prompt_tokens": LENGTH, "every": args.every, **found, **about},
    )


if __name__ == "__main__":
    main()
