"""Whatever goes wrong around a run ends in one message that says what to do, and never in another result."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from broken_off import ENDED, cut, kinds, train

from twinpass import finetune
from twinpass.cli.main import main
from twinpass.config.compose import build
from twinpass.config.load import load_config
from twinpass.core import StepReport, Term
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import BusyError, StorageError
from twinpass.report.listener import Listener
from twinpass.train.folder import RunFolder
from twinpass.train.lock import hold
from twinpass.train.run import carry_out

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
            carry_out(folder, session.engine, session.plan, journal, (), Removes(folder.path))
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


# --- files beside the journal that a run cannot do without


@pytest.mark.parametrize("kind", ["backprop", "informed"])
def test_snapshots_and_directions_that_cannot_be_written_end_in_a_message_and_the_run_goes_on(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known: dict[str, dict[str, Any]] = {
        "backprop": {
            "trainable": tiny.ACTIVATED,
            "estimator": {"kind": "backprop"},
            "optimizer": {"kind": "adamw", "lr": 1e-2, "steps": 3, "batch_size": 4, "snapshot_every": 2},
        },
        "informed": {
            "trainable": tiny.INFORMED,
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
        "trainable": tiny.ACTIVATED,
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
