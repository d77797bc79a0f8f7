"""How a run ends: numbers that are none, its best weights, in time, by a signal, with nobody to tell."""

import json
import os
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
from broken_off import ENDED, kinds, train, weights
from tensors import same

from twinpass import Full, Sgd, finetune
from twinpass.cli.main import main
from twinpass.core import Term
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.report.outcome import outcome
from twinpass.train.journal import read

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
    "inplace": {"engine": {"perturbation": "inplace"}},
    "lora": {"trainable": {"kind": "lora", "rank": 2}},
    "one_sided": {"estimator": {"kind": "one_sided"}},
    "line": {"estimator": {"kind": "line"}},
    "informed": {"trainable": tiny.INFORMED, "estimator": {"kind": "gauss_newton", "probes": 3}},
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


@pytest.mark.parametrize("trainable", [{**tiny.ACTIVATED, "first": 0}, {"kind": "layers", "first": 1, "last": 2}])
def test_a_run_along_whole_gradients_of_zero_stops_and_says_why(
    trainable: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step of 1e6 takes weights to where all options are equally likely, whatever is changed."""
    optimizer = {"kind": "adamw", "lr": 1e6, "steps": 40}
    sections: dict[str, Any] = {"trainable": trainable, "estimator": {"kind": "backprop"}, "optimizer": optimizer}
    assert train(tiny.config(tmp_path, **sections)) == 1
    assert "gradients are exactly 0, at a loss of 0.693147 in the last step" in capsys.readouterr().err
    assert 10 <= kinds(tmp_path / "run").count("step") < 14
    assert main(["train", "--resume", str(tmp_path / "run"), "--json"]) == 1, "and again, from the journal alone"
    (tmp_path / "on").mkdir()
    goes_on = {**sections, "optimizer": {**optimizer, "guard_zeros": False}}
    assert train(tiny.config(tmp_path / "on", **goes_on)) in (0, 3)
    assert kinds(tmp_path / "on/run").count("step") == 40


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
    config = tiny.config(tmp_path, optimizer={"lr": 1e-30, "steps": 2}, engine={"perturbation": "tandem"})
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
