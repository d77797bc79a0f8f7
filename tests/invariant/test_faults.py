"""Whatever goes wrong around a run ends in one message that says what to do, and never in another result."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file

from twinpass import Full, Lora, Sgd, finetune
from twinpass.cli.main import main
from twinpass.config.compose import build
from twinpass.config.load import load_config
from twinpass.core import StepReport, Term
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import BusyError, JournalError, StorageError
from twinpass.report.listener import Listener
from twinpass.report.outcome import outcome
from twinpass.train.folder import RunFolder
from twinpass.train.journal import read
from twinpass.train.lock import hold

ENDED = (0, 3)
"""Codes of a run that went through; tiny random models may well learn nothing."""


def train(config: Path, *more: str) -> int:
    return main(["train", str(config), "--json", *more])


def cut(run: Path, lines: int) -> bytes:
    """Let a finished run be one that was killed early; what its journal held before."""
    journal = run / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(b"".join(whole.splitlines(keepends=True)[:lines]))
    return whole


def kinds(run: Path) -> list[str]:
    return [record["kind"] for record in read(run / "journal.jsonl").records]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = [path for name in ("adapter", "model") for path in folder.glob(f"{name}/*.safetensors")]
    return load_file(file)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- two at once


def test_a_folder_that_another_process_writes_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = tiny.config(tmp_path), tmp_path / "run"
    run.mkdir()
    with hold(run):
        assert train(config) == 2
        assert f"is being written by process {os.getpid()} on" in capsys.readouterr().err
        with pytest.raises(BusyError):
            finetune(tiny.model(), tiny.tokenizer(), tiny.rows(4), prompt="{text}", options=[" bad", " good"], out=run)
    assert train(config) in ENDED
    whole = (run / "journal.jsonl").read_bytes()
    with hold(run):
        assert main(["train", "--resume", str(run), "--json"]) == 2
        assert "is being written by" in capsys.readouterr().err
    with hold(run):
        assert main(["replay", str(run), "--out", str(run), "--json"]) == 2
    assert (run / "journal.jsonl").read_bytes() == whole
    assert not (run / ".lock").exists()


# --- other ground


def flip(file: Path) -> None:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({**row, "label": 1 - row["label"]}) + "\n" for row in rows))


def test_other_rows_are_refused_or_accepted_and_journaled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = tiny.config(tmp_path), tmp_path / "run"
    assert train(config) in ENDED
    before = cut(run, 4)
    flip(tmp_path / "train.jsonl")
    short = (run / "journal.jsonl").read_bytes()
    resume = ["train", "--resume", str(run), "--json"]
    assert main(resume) == 2
    said = capsys.readouterr().err
    assert "the training rows are others; rows are tokenised otherwise" in said
    assert "held-out rows" not in said
    assert "--accept-changes" in said
    assert (run / "journal.jsonl").read_bytes() == short
    assert main([*resume, "--accept-changes"]) in ENDED
    assert kinds(run)[3] == "changes"
    (record,) = [record for record in read(run / "journal.jsonl").records if record["kind"] == "changes"]
    assert set(record["ground"]) == {"train", "examples"}
    assert json.loads((run / "summary.json").read_text())["accepted_changes"] == ["examples", "train"]
    assert (run / "journal.jsonl").read_bytes() != before
    capsys.readouterr()
    assert main(resume) in ENDED, "what was accepted is what it stands on"
    flip(tmp_path / "train.jsonl")
    assert main(resume) == 2, "and what it began with is not, any more"
    assert main(["replay", str(run), "--out", str(tmp_path / "again"), "--json"]) == 0
    assert same(weights(tmp_path / "again"), weights(run)), "its updates are in the journal, whatever the rows were"


def test_another_tokenizer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = tiny.config(tmp_path), tmp_path / "run"
    assert train(config) in ENDED
    cut(run, 4)
    file = tmp_path / "model/tokenizer.json"
    file.write_text(file.read_text().replace('"fine": 6', '"fine": 7').replace('"dull": 7', '"dull": 6'))
    assert main(["train", "--resume", str(run), "--json"]) == 2
    said = capsys.readouterr().err
    assert "the tokenizer is another one; rows are tokenised otherwise" in said


def test_other_code_is_refused_and_a_journal_that_does_not_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = tiny.config(tmp_path), tmp_path / "run"
    assert train(config) in ENDED
    cut(run, 4)
    now = read(run / "journal.jsonl").header["ground"]
    monkeypatch.setattr("twinpass.config.ground.code", lambda: {"source": now["source"], "torch": "99"})
    assert main(["train", "--resume", str(run), "--json"]) == 2
    assert f"torch was {now['torch']}, now 99" in capsys.readouterr().err


# --- the run folder


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/run"])
def test_a_folder_that_cannot_be_made(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("here")
    config = tiny.config(tmp_path, run={"out": str(tmp_path / place)})
    assert train(config) == 2
    assert "cannot be made: " in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "here"


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny.config(tmp_path, run={"out": "/proc/self"})
    assert train(config) == 1
    assert "cannot be locked" in capsys.readouterr().err


def test_what_a_crash_leaves_before_the_header_is_begun_anew(tmp_path: Path) -> None:
    config, run = tiny.config(tmp_path), tmp_path / "run"
    run.mkdir()
    (run / "journal.jsonl").write_bytes(b'{"kind":"hea')
    assert main(["train", "--resume", str(run), "--json"]) == 2
    assert train(config) in ENDED
    assert "step" in kinds(run)


def test_damaged_metrics_are_cut_off_and_the_run_goes_on(tmp_path: Path) -> None:
    config, run = tiny.config(tmp_path), tmp_path / "run"
    assert train(config) in ENDED
    whole = cut(run, 5)
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    for damage in (b"\xff\n", b"[]\n", b'{"event":"song"}\n', b'{"event":"step"}\n', b"[" * 5000):
        (run / "metrics.jsonl").write_bytes(b"".join(lines[:2]) + damage)
        assert main(["train", "--resume", str(run), "--json"]) in ENDED
        assert (run / "journal.jsonl").read_bytes() == whole
        assert (run / "metrics.jsonl").read_bytes().startswith(b"".join(lines[:2]))
        cut(run, 5)


class Removes(Listener):
    """Takes the folder away in the middle of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def stepped(self, report: StepReport, seconds: float) -> None:
        if report.step == 3:
            shutil.rmtree(self.folder)


def test_a_folder_that_is_removed_meanwhile_is_an_error(tmp_path: Path) -> None:
    config = load_config(tiny.config(tmp_path))
    session, folder = build(config), RunFolder(tmp_path / "run")
    with folder.claim(new=True):
        journal = folder.begin(config.values, session.engine, session.ground)
        with pytest.raises(StorageError, match="was removed or replaced while the run went on"):
            folder.train(session.engine, session.plan, journal, (), Removes(folder.path))
    assert not folder.path.exists(), "and nothing is made in its place"


def test_paths_with_markup_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a[" / "]b[bold]"
    config = tiny.config(tmp_path, run={"out": str(out)}, optimizer={"steps": 2})
    assert main(["train", str(config)]) in ENDED
    assert "]b[bold]/plots" in capsys.readouterr().err.replace("\n", "")
    assert main(["replay", str(out)]) == 0
    assert main(["train", str(config), "--set", "model.path=[/]"]) == 2
    assert main(["eval", str(config), "--set", "model.path=\x1b]0;x\x07/a/b"]) == 2
    said = capsys.readouterr().err
    assert "[/]" in said
    assert "\x1b" not in said


def test_a_line_is_on_the_disk_before_what_it_describes_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the configuration before the header, the journal's name before a step, what was trained before its place."""
    config, run = tiny.config(tmp_path), tmp_path / "run"
    journal, wait = run / "journal.jsonl", os.fsync
    synced: dict[int, int] = {}
    steps: list[int] = []

    def fsync(handle: int) -> None:
        wait(handle)
        state = os.fstat(handle)
        synced[state.st_ino] = state.st_size

    def on_disk(path: Path) -> bool:
        return synced.get(path.stat().st_ino, -1) == path.stat().st_size

    def update(engine: TorchEngine, terms: Sequence[Term]) -> None:
        assert on_disk(journal)
        assert on_disk(run / "config.toml")
        assert run.stat().st_ino in synced
        steps.append(kinds(run).count("step"))
        moved(engine, terms)

    moved = TorchEngine.update
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(TorchEngine, "update", update)
    assert train(config, "--set", "run.keep=last") in ENDED
    assert steps == list(range(1, 9)), "before the first update one step is in the journal, and so on"
    files = [*run.glob("adapter/*"), run / "summary.json", journal]
    assert len(files) > 3
    assert all(map(on_disk, files))


# --- numbers that are none


WILD: dict[str, dict[str, Any]] = {
    "choice": {},
    "completion": {
        "task": {
            "kind": "completion",
            "train": "train.jsonl",
            "eval": "eval.jsonl",
            "prompt": "Review:",
            "completion": " {text}",
            "end": False,
        }
    },
    "transported": {"task": {"shots": 2}, "reuse": {"policy": "transported"}, "estimator": {"probes": 1}},
    "inplace": {"estimator": {"perturbation": "inplace"}},
    "lora": {"trainable": {"kind": "lora", "rank": 2}},
}


@pytest.mark.parametrize("steps", [1, 12])
@pytest.mark.parametrize("kind", WILD)
def test_weights_that_overflow_are_a_divergence_whatever_is_scored(
    kind: str, steps: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections = {"trainable": {"kind": "full"}, **WILD[kind]}
    config = tiny.config(tmp_path, **sections, optimizer={"lr": 1e300, "steps": steps, "guard_rollbacks": 2})
    assert train(config) == 1
    assert "lower optimizer.lr" in capsys.readouterr().err
    assert kinds(tmp_path / "run").count("rollback") == 2
    assert not (tmp_path / "run/summary.json").exists()
    assert not (tmp_path / "run/model").exists()
    assert main(["train", "--resume", str(tmp_path / "run"), "--json"]) == 1


@pytest.mark.parametrize("held_out", [True, False])
def test_without_held_out_rows_the_weights_themselves_are_looked_at(held_out: bool, tmp_path: Path) -> None:
    rows = tiny.rows(8) if held_out else []
    with pytest.raises(Exception, match=r"no longer finite|not a finite number"):
        finetune(
            tiny.model(), tiny.tokenizer(), tiny.rows(8), rows, prompt="{text}", options=[" bad", " good"],
            out=tmp_path / "run", trainable=Full(), optimizer=Sgd(lr=1e300, steps=1, batch_size=4, guard_rollbacks=0),
        )  # fmt: skip
    assert not (tmp_path / "run/model").exists()


@pytest.mark.parametrize(
    ("section", "key", "value", "why"), [("epsilon", "value", 1e-12, "eps"), ("optimizer", "lr", 1e6, "")]
)
def test_a_run_whose_gradients_are_zero_stops_and_says_why(
    section: str, key: str, value: float, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, dict[str, Any]] = {
        "optimizer": {"steps": 40, "clip": 0.0, "guard_loss": 0.0, "guard_metric": 0.0}
    }
    settings.setdefault(section, {})[key] = value
    config = tiny.config(tmp_path, trainable={"kind": "full"}, **settings)
    assert train(config) == 1
    said = capsys.readouterr().err
    assert "projected gradients are exactly 0" in said
    assert "raise epsilon.value" in said
    assert kinds(tmp_path / "run").count("step") < 40
    assert main(["train", "--resume", str(tmp_path / "run"), "--json"]) == 1, "and again, from the journal alone"


# --- how a run ends


def metrics_of(run: Path) -> dict[int, float]:
    return {r["step"]: r["metric"] for r in read(run / "journal.jsonl").records if r["kind"] == "evaluation"}


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_weights_of_the_best_evaluation_are_kept(keep: str, tmp_path: Path) -> None:
    """Of a run that goes astray, of which there is one among a few seeds."""
    optimizer = {"lr": 0.1, "steps": 12, "clip": 0.0, "guard_loss": 0.0, "guard_metric": 0.0, "schedule": "constant"}
    for seed in range(8):
        run = tmp_path / f"run-{seed}"
        settings = {"keep": keep, "eval_every": 1, "out": str(run), "seed": seed}
        assert train(tiny.config(tmp_path, optimizer=optimizer, run=settings)) in ENDED
        found = metrics_of(run)
        best = max(found, key=lambda step: (found[step], step))
        if best < 12:
            break
    assert best < 12, "the last is not the best one here, or this shows nothing"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["kept_step"] == (best if keep == "best" else 12)
    assert summary["kept_metric"] == found[summary["kept_step"]]
    assert summary["final_metric"] == found[12]
    for arguments in (["--step", str(summary["kept_step"])], []):
        assert main(["replay", str(run), *arguments, "--out", str(tmp_path / "again"), "--json"]) == 0
        assert same(weights(tmp_path / "again"), weights(run))


def test_a_run_that_learned_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny.config(tmp_path, optimizer={"lr": 1e-30, "steps": 2}, estimator={"perturbation": "tandem"})
    assert main(["train", str(config)]) == 3
    said = capsys.readouterr().err.replace("\n", " ")
    assert "learned nothing: no evaluation is better" in said
    assert "try another optimizer.lr, more steps, or look at plots/gradient.png" in said


def test_what_helps_where_directions_are_fitted_is_no_learning_rate(tmp_path: Path) -> None:
    summary = {
        "metric_name": "accuracy",
        "steps": 2,
        "kept_step": 0,
        "settled": False,
        "steps_planned": 2,
        "rollbacks": 0,
    }
    summary |= {"kept_metric": 0.5, "final_metric": 0.5, "base_metric": 0.5, "accepted_changes": [], "learned": False}
    *_, said = outcome({**summary, "fitted": True}, tmp_path)
    assert "lr" not in said
    assert "see whether prompt, suffix and options read as one text, give more rows or steps" in said


def test_a_run_stops_in_time_and_goes_on(tmp_path: Path) -> None:
    whole, short = tmp_path / "whole", tmp_path / "short"
    assert train(tiny.config(whole)) in ENDED
    assert train(tiny.config(short, run={"max_seconds": 1e-9, "out": str(short / "run"), "seed": 3})) in ENDED
    summary = json.loads((short / "run/summary.json").read_text())
    assert (summary["steps"], summary["steps_planned"]) == (1, 8)
    for done in range(2, 9):
        assert main(["train", "--resume", str(short / "run"), "--json"]) in ENDED
        assert json.loads((short / "run/summary.json").read_text())["steps"] == done
    steps = [[r for r in read(f / "run/journal.jsonl").records if r["kind"] == "step"] for f in (whole, short)]
    assert steps[0] == steps[1]


# --- a run of finetune


@pytest.mark.parametrize("trainable", [Lora(rank=2), Full()])
def test_a_run_of_finetune_is_replayed(trainable: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.save(tmp_path / "model")
    config, run = load_config(tiny.config(tmp_path)), tmp_path / "made"
    from twinpass import load_model

    model, tokenizer = load_model(config.model.path)
    given: Any = {"prompt": "Review: {text}", "suffix": " Sentiment:", "options": [" bad", " good"], "out": run}
    finetune(
        model,
        tokenizer,
        tiny.rows(8),
        tiny.rows(4),
        **given,
        trainable=trainable,
        optimizer=Sgd(lr=1e-3, steps=3, batch_size=4),
    )
    assert main(["replay", str(run), "--out", str(tmp_path / "again"), "--json"]) == 0
    assert same(weights(tmp_path / "again"), weights(run))
    assert main(["replay", str(run), "--step", "1", "--json"]) == 0
    assert not same(weights(run / "step-1"), weights(run))
    for command in (["eval", str(run)], ["train", "--resume", str(run)]):
        capsys.readouterr()
        assert main(command) == 2
        assert "resume=True" in capsys.readouterr().err
    with pytest.raises(JournalError, match=r'exist="resume" continues it, .* or choose another folder with out='):
        finetune(model, tokenizer, tiny.rows(8), **given)
    shutil.rmtree(tmp_path / "model")
    assert main(["replay", str(run), "--json"]) == 2
    assert "known to Python only" in capsys.readouterr().err


# --- nobody to tell


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("deaf", ["stdout", "stderr", "both"])
def test_where_nothing_can_be_said_a_run_ends_and_goes_on(
    deaf: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard output or error on a full disk: whichever still takes something has the message."""
    config, run = tiny.config(tmp_path), tmp_path / "run"
    streams = [deaf] if deaf != "both" else ["stdout", "stderr"]
    with monkeypatch.context() as patch, ExitStack() as opened:
        for name in streams:
            patch.setattr(sys, name, opened.enter_context(open("/dev/full", "w", buffering=1)))  # noqa: PTH123
        code = main(["train", str(config), "--json"])
        usage = main(["trian", "--json"])
    said = capsys.readouterr()
    assert usage == 2
    if deaf == "stderr":
        assert code in ENDED, "with --json all that is said goes to standard output"
        return
    assert code == 1
    assert not (run / "summary.json").exists()
    if deaf == "stdout":
        assert "cannot be used: No space left on device; make room there" in said.err
        assert said.err.count("Traceback") == 0
    assert main(["train", "--resume", str(run), "--json"] if run.exists() else ["train", str(config)]) in ENDED


# --- signals, and a locale of another time


@contextmanager
def started(arguments: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, which does not outlive the block."""
    code = "import sys; from twinpass.cli.main import main; sys.exit(main(sys.argv[1:]))"
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", env=env, cwd=folder
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_and_the_last_word_is_how_to_go_on(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run, moved = tiny.config(tmp_path), tmp_path / "run", TorchEngine.update

    def update(engine: TorchEngine, terms: Sequence[Term]) -> None:
        if kinds(run).count("step") == 3:
            os.kill(os.getpid(), number)
        moved(engine, terms)

    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "update", update)
        assert main(["train", str(config)]) == 128 + number
    said = capsys.readouterr().err.replace("\n", "")
    assert said.endswith(f"continue with: twinpass train --resume {run}")
    assert kinds(run).count("step") == 3
    assert main(["train", "--resume", str(run), "--json"]) in ENDED
    assert kinds(run).count("step") == 8


def test_a_terminated_run_says_how_to_go_on(tmp_path: Path) -> None:
    config = tiny.config(
        tmp_path, task={"prompt": "Kritik („{text}“)"}, optimizer={"steps": 10**6}, run={"eval_every": 0}
    )
    with started(["train", str(config)], tmp_path) as process:
        journal = tmp_path / "run/journal.jsonl"
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            with suppress(OSError):
                if journal.read_bytes().count(b'"kind":"step"') > 2:
                    process.send_signal(signal.SIGTERM)
                    break
            time.sleep(0.1)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert (
        f"interrupted; every finished step is in the journal; continue with: twinpass train --resume {tmp_path / 'run'}"
        in said
    )
    assert not (tmp_path / "run/.lock").exists()


@pytest.mark.full
def test_a_run_is_read_in_any_locale(tmp_path: Path) -> None:
    assert train(tiny.config(tmp_path, task={"prompt": "Kritik („{text}“)"})) in ENDED
    with started(["eval", str(tmp_path / "run"), "--step", "2", "--json"], tmp_path) as process:
        out, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert json.loads(out)["examples"] == 6


# --- files beside the journal that a run cannot do without


@pytest.mark.parametrize("kind", ["backprop", "informed"])
def test_snapshots_and_directions_that_cannot_be_written_end_in_a_message_and_the_run_goes_on(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known: dict[str, dict[str, Any]] = {
        "backprop": {
            "trainable": {"kind": "activated", "rank": 2, "alpha": 4.0},
            "estimator": {"kind": "backprop"},
            "optimizer": {"kind": "adamw", "lr": 1e-2, "steps": 3, "batch_size": 4, "snapshot_every": 2},
        },
        "informed": {
            "trainable": {"kind": "informed", "layers": 1, "fit_rows": 6},
            "estimator": {"kind": "gauss_newton", "probes": 2},
            "optimizer": {"steps": 3, "batch_size": 4},
        },
    }
    config, run = tiny.config(tmp_path, **known[kind]), tmp_path / "run"
    run.mkdir()
    place = run / {"backprop": "snapshots", "informed": "spaces"}[kind]
    place.write_text("in the way")
    assert train(config) == 1
    assert "cannot be written: File exists; a file is in the way" in capsys.readouterr().err
    place.unlink()
    assert main(["train", "--resume", str(run)]) in ENDED
    assert not list(place.glob(".*"))


def test_a_damaged_snapshot_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sections: dict[str, dict[str, Any]] = {
        "trainable": {"kind": "activated", "rank": 2, "alpha": 4.0},
        "estimator": {"kind": "backprop"},
        "optimizer": {"kind": "adamw", "lr": 1e-2, "steps": 3, "batch_size": 4, "snapshot_every": 1},
    }
    config, run = tiny.config(tmp_path, **sections), tmp_path / "run"
    assert train(config) in ENDED
    lines = (run / "journal.jsonl").read_bytes().splitlines()
    cut(run, next(i for i, line in enumerate(lines) if b'"kind":"snapshot"' in line) + 1)
    file = run / "snapshots/step-1.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    assert main(["train", "--resume", str(run)]) == 2
    assert f"{file} cannot be read" in capsys.readouterr().err.replace("\n", "")
