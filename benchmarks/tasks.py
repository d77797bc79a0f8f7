"""Public tasks with nothing set but their names, and by settings around those: ``python benchmarks/tasks.py FOLDER --json FILE``.

FOLDER has the files of each task in a folder of its own, as they were published (docs/tasks.md): SST2, RTE, CB, BoolQ, WSC, WiC, MultiRC, COPA, SST5,
TREC, AGNews; gsm8k has ``train.jsonl``, of whose answers the first words are learned, SelfInstruct ``seed_tasks.jsonl``. What is missing is left out. The
result holds the files' SHA-256, not their rows. ``--tasks``, ``--ways`` and ``--seeds`` measure a part; other runs in the result stay, but for those of a
task that is measured by a way that is no more. The demo's reviews are a task, too.
"""

import argparse
import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from twinpass.cli.main import main as twinpass
from twinpass.cli.train import LEARNED_NOTHING
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json
from twinpass.report.interval import wilson
from twinpass.report.metrics import read_metrics

SIGNALS = 128
"""Exit codes beyond it are those of signals."""

WORDS = 24
"""Words of a worked answer that are learned."""

LORA, FULL = "trainable.kind=lora", "trainable.kind=full"
WAYS: Mapping[str, Sequence[str]] = {
    "default": (),
    "quarter of the rate": ("optimizer.lr=1e-3",),
    "twice the rate": ("optimizer.lr=8e-3",),
    "80 steps": ("optimizer.steps=80",),
    "attention, all layers": (
        "trainable.kind=activated",
        'trainable.targets=["q_proj", "k_proj", "v_proj", "o_proj"]',
        "trainable.first=0",
    ),
    "all linear layers, upper 20": (
        "trainable.kind=activated",
        "trainable.targets=all-linear",
        "trainable.first=-20",
    ),
    "informed": ("trainable.kind=informed",),
    "lora": (LORA,),
    "lora, lr 1e-3": (LORA, "optimizer.lr=1e-3"),
    "lora, lr 2e-3": (LORA, "optimizer.lr=2e-3"),
    "lora, lr 8e-3": (LORA, "optimizer.lr=8e-3"),
    "full": (FULL,),
    "full, lr 1e-3": (FULL, "optimizer.lr=1e-3"),
    "full, lr 4e-3": (FULL, "optimizer.lr=4e-3"),
    "full, twice the steps": (FULL, "optimizer.steps=80"),
    "full, random directions": (FULL, "estimator.kind=spsa"),
}
"""What each way sets, as in ``twinpass train --set``. A kind's first is its default; the others of its name are what it is held against."""


@dataclass(frozen=True)
class Task:
    """``section``: what [task] says, but for its files. ``rows``: to train on and to report on, at the most. ``late``: adapters act on the answer alone.

    ``ours``: whether its rows come with the repository.
    """

    folder: str
    section: dict[str, Any]
    rows: tuple[int, int] = (300, 200)
    late: bool = True
    ours: bool = False

    def files(self, folder: Path) -> list[Path]:
        """Where its rows are; ``folder`` holds the folders of public tasks. None: they are not there."""
        if self.ours:
            return sorted(EXAMPLES.glob(f"{self.folder}-*.jsonl"))
        return sorted(file for file in (folder / self.folder).glob("*") if file.is_file())


EXAMPLES = Path(__file__).parents[1] / "examples" / "data"

TASKS = (
    Task(
        "reviews",
        {
            "prompt": "Review: {text}\n",
            "suffix": "Sentiment:",
            "options": [" terrible", " great"],
            "labels": ["negative", "positive"],
        },
        (500, 300),
        ours=True,
    ),
    Task("SST2", {"name": "sst2"}),
    Task("SST5", {"name": "sst5"}),
    Task("RTE", {"name": "rte"}, (200, 150)),
    Task("CB", {"name": "cb"}, (200, 56)),
    Task("BoolQ", {"name": "boolq"}, (150, 100)),
    Task("WSC", {"name": "wsc"}, (300, 104)),
    Task("WiC", {"name": "wic"}),
    Task("COPA", {"name": "copa"}, (300, 100), late=False),
    Task("TREC", {"name": "trec"}),
    Task("AGNews", {"name": "agnews"}, (300, 200)),
    Task(
        "gsm8k",
        {"prompt": "Question: {question}\n", "suffix": "Answer:", "completion": " {answer}", "end": False},
        (240, 48),
    ),
    Task("SelfInstruct", {}, (120, 40)),
)


def sections(task: Task, folder: Path, scratch: Path) -> dict[str, Any] | None:
    """The section [task]; None: its files are not there."""
    train, held_out = task.rows
    rows = {"train_rows": train, "eval_rows": held_out}
    files = task.files(folder)
    if not files:
        return None
    if task.ours:
        held, own = map(str, files)
        return {**task.section, "train": own, "eval": held, **rows}
    if "name" in task.section:
        path = files[0] if len(files) == 1 else folder / task.folder
        return {**task.section, "path": str(path), **_bounded(task.section["name"], path, rows)}
    texts = [file for file in files if file.suffix == ".jsonl"]
    file = next((file for file in texts if "train" in file.name), texts[0] if texts else None)
    if file is None:
        return None
    made = scratch / f"{task.folder}.jsonl"
    lines = (json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip())
    made.write_text("".join(json.dumps(row) + "\n" for row in _texts(task.folder, lines)), "utf-8")
    return {**task.section, "train": str(made), **rows}


def _bounded(name: str, path: Path, rows: dict[str, int]) -> dict[str, Any]:
    """No more rows than there are; where there is one file, rows are held out of it."""
    from twinpass.config.named import TaskByName

    train, held_out = TaskByName(name, path=str(path)).rows()
    if held_out is None:
        return rows
    return {
        "train_rows": min(rows["train_rows"], len(train)),
        "eval_rows": min(rows["eval_rows"], len(held_out)),
    }


def _texts(name: str, lines: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if name == "gsm8k":
            yield {"question": line["question"], "answer": " ".join(line["answer"].split()[:WORDS])}
        else:
            first = line["instances"][0]
            short = " ".join(first["output"].split()[: 2 * WORDS])
            if len(line["instruction"]) + len(first["input"]) < 600:
                yield {"instruction": line["instruction"], "input": first["input"], "output": short}


def run(task: Task, section: dict[str, Any], seed: int, scratch: Path, sets: Sequence[str]) -> dict[str, Any]:
    """Train once; what was measured. A setting is ``SECTION.KEY=VALUE``."""
    config, out = scratch / "it.toml", scratch / "run"
    shutil.rmtree(out, ignore_errors=True)
    config.write_text(
        tomli_w.dumps({"model": {"path": "smollm2"}, "task": section, "run": {"out": str(out), "seed": seed}})
    )
    kept = [f"reuse.spill={scratch / 'kv'}", "reuse.policy=activated"] if task.late and _reads_alike(sets) else []
    chosen = [part for each in (*sets, *kept) for part in ("--set", each)]
    if (code := twinpass(["train", str(config), *chosen, "--json"])) not in (0, LEARNED_NOTHING):
        if code > SIGNALS:
            raise SystemExit(code)  # ended from outside, which is no result
        return {"seed": seed, "exit_code": code}
    summary = json.loads((out / "summary.json").read_text())
    course, seconds = [], 0.0
    for row in read_metrics(out / "metrics.jsonl"):
        if row["event"] == "step":
            seconds += row["seconds"]
        elif row["event"] == "evaluation":
            point = {"step": row["step"], "train_seconds": seconds, "metric": row["metric"], "loss": row["loss"]}
            if row["metric_name"] == "accuracy":
                point["low"], point["high"] = wilson(row["metric"], summary["held_out"])
            course.append(point)
    keys = ("metric_name", "base_metric", "kept_metric", "kept_step", "final_metric", "train_seconds", "total_seconds")
    more = ("peak_rss_bytes", "steps", "rollbacks", "held_out", "learned")
    return {"seed": seed, "course": course, **{key: summary[key] for key in (*keys, *more)}}


def _reads_alike(sets: Sequence[str]) -> bool:
    """Whether a run varies the default and reads prompts as that does: then a task's runs find their keys and values on disk, which changes no bit."""
    return bool(sets) and all(not each.startswith("trainable.kind=") or each.endswith("=activated") for each in sets)


def hashes(files: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of the files of a task."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the tasks' files lie")
    parser.add_argument("--json", type=Path, required=True, help="where to write the result, after every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=(1, 2, 3))
    parser.add_argument("--tasks", nargs="+", metavar="FOLDER", help="those that are measured, of all there are")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["default"])
    args = parser.parse_args()
    measure(args.folder, args.json, args.seeds, args.tasks, args.ways)


def measure(
    folder: Path, result: Path, seeds: Sequence[int], names: Sequence[str] | None, ways: Sequence[str]
) -> dict[str, Any]:
    """Every task in every way on every seed, and what has been measured before."""
    head = {"commit": commit(), "machine": machine(), "versions": versions()}
    for task in TASKS:
        if names and task.folder not in names:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            section = sections(task, folder, Path(scratch))
            if section is None:
                continue
            said = {key: value for key, value in section.items() if key not in ("path", "train", "eval")}
            about = {"task": said, "files": hashes(task.files(folder))}
            with _found(result, head) as found:
                own = found.setdefault(task.folder, {**about, "runs": {}})
                if any(own[key] != value for key, value in about.items()):
                    raise SystemExit(f"{result}: holds other rows of {task.folder}; give another file")
                own["runs"] = {way: runs for way, runs in own["runs"].items() if way in WAYS}
            for way in ways:
                for seed in seeds:
                    measured = run(task, section, seed, Path(scratch), WAYS[way])
                    with _found(result, head) as found:
                        runs = found[task.folder]["runs"]
                        others = [each for each in runs.get(way, []) if each["seed"] != seed]
                        runs[way] = [*others, {**measured, "set": list(WAYS[way]), **head}]
    with _found(result, head) as found:
        return found


@contextmanager
def _found(result: Path, head: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The tasks as the result has them, to be changed: by one process at a time, so that several may measure into one file."""
    with result.with_name(f".{result.name}.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        found: dict[str, Any] = json.loads(result.read_text())["tasks"] if result.exists() else {}
        before = json.dumps(found)
        yield found
        if json.dumps(found) != before:
            write_json(result, {**head, "model": "smollm2", "tasks": found})


if __name__ == "__main__":
    main()
