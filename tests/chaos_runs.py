"""Runs of every kind in processes that are forked, killed and waited for, and what they come to undisturbed."""

import faulthandler
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import tiny
import torch

from twinpass.cli.main import main

ENDED = (0, 3)
HANGS = 300.0
"""Seconds that no run takes."""
SHOTS = {"shots": 2}
ADAMW = {"kind": "adamw", "lr": 1e-2, "steps": 8, "batch_size": 4, "snapshot_every": 3}
REWARDED = {
    "kind": "reward",
    "train": "train.jsonl",
    "eval": "eval.jsonl",
    "prompt": "Review: {text}",
    "rewards": ["rewards.py:short"],
    "samples": 2,
}
DEFAULT = {"trainable": None, "estimator": None, "optimizer": ADAMW}
"""What learns is chosen by the task: adapters on output projections of the upper layers, along the exact gradient."""
DATA = Path(__file__).parents[1] / "examples/data"
KINDS: dict[str, dict[str, Any]] = {
    "default": DEFAULT,
    "lora": {},
    "lora-inplace": {"engine": {"perturbation": "inplace"}},
    "full": {"trainable": {"kind": "full"}},
    "full-bfloat16": {"trainable": {"kind": "full"}, "model": {"dtype": "bfloat16"}},
    "full-inplace": {"trainable": {"kind": "full"}, "engine": {"perturbation": "inplace"}},
    "one-sided": {"estimator": {"kind": "one_sided", "probes": 2}},
    "jvp": {"trainable": {"kind": "full"}, "estimator": {"kind": "jvp", "probes": 1}},
    "blocks": {"trainable": {"kind": "layers", "first": 0, "last": 2, "block": 1, "every": 2}},
    "activated": {"trainable": tiny.ACTIVATED},
    "activated-spill": {"trainable": tiny.ACTIVATED, "reuse": {"policy": "activated", "spill": "SPILL"}},
    "reflected": {"trainable": {"kind": "full"}, "task": SHOTS, "reuse": {"policy": "reflected", "tolerance": 10.0}},
    "transported": {
        "trainable": {"kind": "full"},
        "task": SHOTS,
        "reuse": {"policy": "transported", "refresh": 3, "tolerance": 10.0},
        "estimator": {"probes": 1},
    },
    "adaptive": {"epsilon": {"kind": "adaptive", "start": 1e-3}},
    "informed": {
        "trainable": tiny.INFORMED,
        "estimator": {"kind": "gauss_newton", "probes": 3},
    },
    "backprop": {
        "trainable": tiny.ACTIVATED,
        "estimator": {"kind": "backprop"},
        "optimizer": ADAMW,
    },
    "backprop-outputs": {
        "trainable": {**tiny.ACTIVATED, "targets": "outputs", "first": 1},
        "estimator": {"kind": "backprop"},
        "optimizer": ADAMW,
    },
    "backprop-bfloat16": {
        "trainable": tiny.ACTIVATED,
        "estimator": {"kind": "backprop"},
        "optimizer": ADAMW,
        "engine": {"compute_dtype": "bfloat16"},
    },
    "feedback": {
        "trainable": {**tiny.ACTIVATED, "targets": ["o_proj", "down_proj"], "first": 1},
        "estimator": {"kind": "feedback"},
        "optimizer": ADAMW,
    },
    "full-feedback": {
        "trainable": {"kind": "full"},
        "estimator": {"kind": "feedback"},
        "optimizer": {**ADAMW, "kind": "relative"},
    },
    "expected-accuracy": {
        "trainable": {"kind": "informed", "layers": 1, "fit_rows": 6},
        "estimator": {"kind": "gauss_newton", "probes": 3},
        "objective": {"kind": "expected_accuracy"},
    },
    "regularised": {
        "trainable": tiny.ACTIVATED,
        "estimator": {"kind": "backprop"},
        "objective": {"kind": "choice", "regularise": "kl"},
        "optimizer": ADAMW,
    },
    "rewards": {
        "task": REWARDED,
        "generation": {"max_tokens": 4},
        "estimator": {"kind": "spsa", "probes": 2},
    },
    "policy-gradient": {
        "task": {**REWARDED, "steps_per_generation": 2},
        "generation": {"max_tokens": 4},
        "estimator": {"kind": "backprop"},
        "optimizer": ADAMW,
    },
}
"""Every estimator and objective, and whatever has a state of its own."""
REAL: dict[str, dict[str, Any]] = {
    "smollm2": {
        **DEFAULT,
        "model": {"path": "smollm2"},
        "task": {
            "train": str(DATA / "reviews-train.jsonl"),
            "eval": str(DATA / "reviews-eval.jsonl"),
            "train_rows": 12,
            "eval_rows": 6,
            "prompt": "Review: {text}\n",
            "suffix": "Sentiment:",
            "options": [" terrible", " great"],
            "labels": ["negative", "positive"],
        },
    },
}
"""Runs of a real model, which take their time: by their name alone."""
REWARDS = """
def short(completions, **columns):
    return [-float(len(text)) for text in completions]
"""


class Child:
    """``main`` with some arguments in a process of its own."""

    def __init__(self, arguments: Sequence[str], said: Path, before: Callable[[], Any] = lambda: None) -> None:
        self.pid = os.fork()
        if not self.pid:
            code = 70
            try:
                handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(handle, 1)
                os.dup2(handle, 2)
                faulthandler.dump_traceback_later(HANGS / 2)
                # PyTorch replaces its pool of threads after a fork, and threads that load weights would race to do so
                torch.set_num_threads(1)
                before()
                code = main(arguments)
            except BaseException:
                import traceback

                with suppress(BaseException):
                    traceback.print_exc()
            finally:
                with suppress(BaseException):
                    sys.stdout.flush()
                os._exit(code)

    def kill_after(self, seconds: float) -> bool:
        """Whether it was still alive then."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                return False
            time.sleep(0.001)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return True

    def wait(self) -> int:
        """Its exit code; that of SIGKILL if it hangs."""
        until = time.monotonic() + HANGS
        while time.monotonic() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


WRITES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "shutil.rmtree")


def at_writes(folder: Path, act: Callable[[int], object]) -> None:
    """Call ``act`` with the number of each change that this process is about to make to ``folder``, from 1."""
    seen = 0

    def hook(event: str, given: tuple[Any, ...]) -> None:
        nonlocal seen
        opened = (
            event == "open" and len(given) > 2 and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if (opened or event in WRITES) and str(given[0]).startswith(str(folder)):
            seen += 1
            act(seen)

    sys.addaudithook(hook)


class Kind:
    """One kind of run, and what it comes to undisturbed."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder, self.run = name, folder / name, folder / name / "run"
        self.found: Counter[str] = Counter()
        self.folder.mkdir()
        (self.folder / "rewards.py").write_text(REWARDS)
        text = json.dumps({**KINDS, **REAL}[name]).replace('"SPILL"', json.dumps(str(self.folder / "kv")))
        self.fresh = ["train", str(tiny.config(self.folder, **json.loads(text))), "--json"]
        self.further = ["train", "--resume", str(self.run), "--json"]
        counted = self.folder / "writes"
        code = self.child(self.fresh, lambda: at_writes(self.run, lambda i: counted.write_text(str(i)))).wait()
        if code not in ENDED:
            raise SystemExit(f"{name}: {self.words()}")
        self.whole, self.writes = self.result(), int(counted.read_text())
        self.clear()
        began = time.monotonic()
        problem = self.goes_on()
        self.seconds = time.monotonic() - began
        if problem:
            raise SystemExit(f"{name}, undisturbed: {problem}")

    def child(self, arguments: Sequence[str], before: Callable[[], Any] = lambda: None, name: str = "said") -> Child:
        return Child(arguments, self.folder / name, before)

    def words(self, name: str = "said") -> str:
        return (self.folder / name).read_text(errors="replace")

    def result(self) -> dict[str, bytes]:
        """The journal, the weights that were left, and hashes and names of whatever lies beside them."""
        kept = [
            self.run / "journal.jsonl",
            *(path for kind in ("adapter", "model") for path in self.run.glob(f"{kind}/*.safetensors")),
            *self.run.glob("*/SHA256SUMS"),
        ]
        names = sorted(str(path.relative_to(self.run)) for path in self.run.rglob("*"))
        return {"": "\n".join(names).encode()} | {str(path.relative_to(self.run)): path.read_bytes() for path in kept}

    def clear(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.rmtree(self.folder / "kv", ignore_errors=True)

    def command(self) -> list[str]:
        """What a user would type: resume, or begin where nothing has begun."""
        journal = self.run / "journal.jsonl"
        return self.further if journal.exists() and b"\n" in journal.read_bytes() else self.fresh

    def refused(self, code: int, what: str) -> str | None:
        """What is wrong with how a run under ``what`` ended: it has to go through, or say why not and leave no traceback."""
        self.found[what] += 1
        self.found[f"{what}: ended with a message"] += code in (1, 2)
        if code in (1, 2, *ENDED) and "Traceback" not in self.words():
            return None
        return f"exit {code}: {self.words()[-1500:]}"

    def goes_on(self) -> str | None:
        """What is wrong with what a run comes to that is undisturbed from here on."""
        code = self.child(self.command()).wait()
        if code not in ENDED:
            return f"exit {code}: {self.words()[-1500:]}"
        found = self.result()
        other = [name or "files" for name in {**found, **self.whole} if found.get(name) != self.whole.get(name)]
        return f"another result: {other}, {found[''].decode().split()}" if other else None
