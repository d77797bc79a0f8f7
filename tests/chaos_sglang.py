"""Runs on a real SGLang, of which either side is killed at random: each says so, goes on, and comes to what its journal says.

    python tests/chaos_sglang.py --trials 8 --json benchmarks/results/chaos-sglang.json

Scores of SGLang depend in their last bits on what it has cached, so that a run is not compared with one that was left alone. Lines that
were in the journal stay there, and the embedded engine rebuilds from it what was trained, to the bit.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from real_sglang import SECRET, START_SECONDS, RunningServer

from twinpass.engine.sglang.address import KEY
from twinpass.model.load import load
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json
from twinpass.train.journal import read

EXAMPLES = Path(__file__).parents[1] / "examples"
TWINPASS = [sys.executable, "-m", "twinpass"]
LAYERS = 2
"""Of the 30 that SmolLM2-135M has."""

STEPS = 8
HANGS = 2 * START_SECONDS
ENDED = (0, 3)

KINDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "adapters": ("reviews-mezo.toml", {"reuse.budget": "1GiB"}),
    "weights": ("reviews-full.toml", {"engine.perturbation": "inplace"}),
}
"""What is loaded into SGLang, and what moves there."""


def model(folder: Path) -> Path:
    """The lower layers of SmolLM2-135M, as a folder that SGLang reads."""
    net, tokenizer = load("smollm2")
    del cast(Any, net).model.layers[LAYERS:]
    net.config.num_hidden_layers = LAYERS
    for part in (net, tokenizer):
        part.save_pretrained(folder)
    return folder


class Run:
    """A run of one kind on a server, and what was said last."""

    def __init__(self, kind: str, folder: Path, server: RunningServer) -> None:
        self.path, self.server, self.said = folder / "run", server, ""
        config, changes = KINDS[kind]
        values = {
            "model.path": server.folder,
            "engine.kind": "sglang",
            "engine.url": server.url,
            "optimizer.steps": STEPS,
            "optimizer.batch_size": 4,
            "task.train_rows": 40,
            "task.eval_rows": 8,
            "run.eval_every": 0,
            "run.out": self.path,
            **changes,
        }
        settings = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
        self._fresh = ["train", str(EXAMPLES / config), *settings, "--json"]
        self._words = folder / "said"

    def start(self) -> subprocess.Popen[bytes]:
        arguments = ["train", "--resume", str(self.path), "--json"] if self.lines() else self._fresh
        with self._words.open("wb") as said:
            return subprocess.Popen([*TWINPASS, *arguments], stdout=said, stderr=said, start_new_session=True)

    def end(self, process: subprocess.Popen[bytes]) -> int | None:
        """The exit code; None if it hangs."""
        try:
            code = process.wait(HANGS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
        self.said = self._words.read_text(errors="replace")
        return code

    def lines(self) -> list[bytes]:
        """Whole lines of the journal."""
        journal = self.path / "journal.jsonl"
        whole = journal.read_bytes().rpartition(b"\n")[0] if journal.exists() else b""
        return whole.splitlines()

    def steps(self) -> int:
        return sum(line.startswith(b'{"kind":"step"') for line in self.lines())

    def disturb(self, process: subprocess.Popen[bytes], chance: random.Random, kill: Callable[[], None]) -> bool:
        """Kill something a moment after a step that is drawn at random; whether the run was still alive."""
        step, later = chance.randrange(STEPS), chance.uniform(0.0, 1.0)
        until = time.monotonic() + HANGS
        while time.monotonic() < until and process.poll() is None and not (self.lines() and self.steps() >= step):
            time.sleep(0.02)
        time.sleep(later)
        alive = process.poll() is None
        if alive:
            kill()
        return alive

    def wrong(self, before: Sequence[bytes]) -> str | None:
        """What is wrong with a run that ended, of which the journal had these lines before it went on."""
        if self.lines()[: len(before)] != list(before):
            return "lines of the journal were changed"
        records = read(self.path / "journal.jsonl").records
        if [record["step"] for record in records if record["kind"] == "step"] != list(range(STEPS)):
            return "steps are missing"
        again = self.path.with_name("again")
        if subprocess.run([*TWINPASS, "replay", str(self.path), "--out", str(again), "--json"], check=False).returncode:
            return "it cannot be replayed"
        (ours,), (theirs,) = (
            [path.read_bytes() for path in at.glob("*/*model.safetensors")] for at in (self.path, again)
        )
        if ours != theirs:
            return "other weights than its journal's"
        kept = [path for path in self.path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
        return f"the API key is in {kept}" if kept or SECRET in self.said else None


def server_killed(run: Run, chance: random.Random, found: Counter[str]) -> str | None:
    """The server dies, the run says so; on another one it goes on."""
    process = run.start()
    alive = run.disturb(process, chance, run.server.kill)
    code, before = run.end(process), run.lines()
    found["servers killed"] += alive
    problem = None
    if alive and code not in ENDED:
        found["servers killed: run ended with a message"] += code == 1
        clear = code == 1 and "Traceback" not in run.said and "--resume" in run.said
        problem = None if clear else f"exit {code}: {run.said[-1500:]}"
    run.server.kill()
    run.server.start()
    if problem is None and (code := run.end(run.start())) not in ENDED:
        problem = f"exit {code}: {run.said[-1500:]}"
    return problem or run.wrong(before)


def run_killed(run: Run, chance: random.Random, found: Counter[str]) -> str | None:
    """The run dies and leaves the server somewhere; it goes on there."""
    process = run.start()
    alive = run.disturb(process, chance, lambda: os.killpg(process.pid, signal.SIGKILL))
    run.end(process)
    before = run.lines()
    found["runs killed"] += alive
    if (code := run.end(run.start())) not in ENDED:
        return f"exit {code}: {run.said[-1500:]}"
    return run.wrong(before)


Trial = Callable[[Run, random.Random, Counter[str]], str | None]
TRIALS: Sequence[Trial] = (run_killed, server_killed)


def main(trials: int, seed: int, file: Path | None) -> dict[str, Any]:
    """So many trials, by turns of every kind; ``file`` holds what is known after each."""
    os.environ[KEY] = SECRET
    chance, found, problems = random.Random(seed), Counter[str](), list[str]()
    result: dict[str, Any] = {"seed": seed, "commit": commit(), "machine": machine(), "versions": versions()}
    result["versions"] |= {"sglang": version("sglang")}
    with tempfile.TemporaryDirectory() as temporary:
        server = RunningServer(model(Path(temporary, "model")), Path(temporary, "log"))
        server.start()
        try:
            for number in range(trials):
                kind, trial = list(KINDS)[number // 2 % 2], TRIALS[number % 2]
                folder = Path(temporary, f"trial-{number}")
                folder.mkdir()
                if problem := trial(Run(kind, folder, server), chance, found):
                    problems.append(f"{kind}, {trial.__name__}: {problem}")
                found[f"trials, {kind}"] += 1
                print(number, kind, trial.__name__, problem or "went on", flush=True)
                result |= {"found": dict(sorted(found.items())), "problems": problems}
                if file:
                    write_json(file, result)
        finally:
            server.kill()
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    whole = main(given.trials, given.seed, given.json)
    if not given.json:
        print(json.dumps(whole, indent=2))
    sys.exit(bool(whole["problems"]))
