"""Trackers get what metrics.jsonl has: read back from real event files; a package that is not there is named."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

import twinpass
from twinpass.cli.main import main
from twinpass.config.load import load_config
from twinpass.errors import ConfigError
from twinpass.report import trackers
from twinpass.report.trackers import scalars

TRACKED = {"report_to": ["tensorboard"]}


def written(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by name, from the event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    return {name: [(point.step, point.value) for point in found.Scalars(name)] for name in found.Tags()["scalars"]}


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == kind]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard's own dependencies
def test_tensorboard_has_steps_and_evaluations(tmp_path: Path) -> None:
    config, run = tiny.config(tmp_path, run=TRACKED), tmp_path / "run"
    assert main(["train", str(config), "--json"]) == 0
    found = written(run)
    steps, evaluations = lines(run, "step"), lines(run, "evaluation")
    assert [step for step, _ in found["train/loss"]] == list(range(1, 9))
    for name in ("loss", "lr", "eps", "seconds", "hit_rate"):
        assert [value for _, value in found[f"train/{name}"]] == pytest.approx([row[name] for row in steps])
    sizes = [sum(map(abs, row["gradients"])) / 2 for row in steps]
    assert [value for _, value in found["train/gradient"]] == pytest.approx(sizes)
    for name, key in (("accuracy", "metric"), ("loss", "loss")):
        assert [step for step, _ in found[f"eval/{name}"]] == [row["step"] for row in evaluations]
        assert [value for _, value in found[f"eval/{name}"]] == pytest.approx([row[key] for row in evaluations])
    journal = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (run / "journal.jsonl").write_bytes(b"".join(journal[:-3]))
    assert main(["train", "--resume", str(run), "--json"]) == 0
    assert len(written(run)["train/loss"]) > 8, "it goes on in the same place"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_from_python(tmp_path: Path) -> None:
    options: dict[str, Any] = {"prompt": "Review: {text}", "suffix": " Sentiment:", "options": [" bad", " good"]}
    options |= {"trainable": twinpass.Lora(rank=2), "optimizer": twinpass.Sgd(lr=1e-3, steps=2, batch_size=2)}
    rows = tiny.rows(4)
    plain = twinpass.finetune(tiny.model(), tiny.tokenizer(), rows, rows, **options, out=tmp_path / "plain")
    tracked = twinpass.finetune(
        tiny.model(), tiny.tokenizer(), rows, rows, **options, out=tmp_path / "run", report_to=["tensorboard"]
    )
    assert tracked["final_metric"] == plain["final_metric"]
    assert len(written(tmp_path / "run")["train/loss"]) == 2
    headers = [(tmp_path / run / "journal.jsonl").read_bytes().splitlines()[0] for run in ("plain", "run")]
    assert headers[0] == headers[1], "being watched is no part of what a run is"
    with pytest.raises(ConfigError, match="there is no tracker 'mlflow'; there are tensorboard, wandb, trackio"):
        twinpass.finetune(
            tiny.model(), tiny.tokenizer(), rows, rows, **options, out=tmp_path / "none", report_to="mlflow"
        )
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("said", "found"), [("wandb", ("wandb",)), ("none", ()), (["wandb", "trackio"], ("wandb", "trackio"))]
)
def test_one_tracker_may_be_named_alone(tmp_path: Path, said: Any, found: tuple[str, ...]) -> None:
    assert load_config(tiny.config(tmp_path, run={"report_to": said})).run.report_to == found
    assert tuple(trackers.several(said)) == found


def test_a_tracker_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    config = tiny.config(tmp_path, run={"report_to": ["wandb", "trackio"]})
    assert main(["train", str(config)]) == 2
    said = capsys.readouterr().err
    for name in ("wandb", "trackio"):
        assert f"[run] report_to: '{name}' is not installed: pip install {name}" in said
    assert not (tmp_path / "run").exists()
    assert main(["train", str(config), "--set", 'run.report_to=["mlflow"]']) == 2
    assert "report_to" in capsys.readouterr().err


def test_runs_of_one_name_in_two_folders_are_two() -> None:
    names = {trackers.distinct(Path(place)) for place in ("a/run", "b/run", "a/../a/run")}
    assert len(names) == 2
    assert all(name.startswith("run-") for name in names)


def test_whatever_a_step_measures_is_told() -> None:
    known = {
        "event": "step",
        "step": 3,
        "loss": -0.5,
        "gradients": [1.0, -3.0],
        "norm": 9.0,
        "reused_by_source": {"a": 1},
    }
    assert scalars({**known, "reward": 0.5, "completions/mean_length": 7.0}) == (
        4,
        {"train/loss": -0.5, "train/gradient": 2.0, "train/reward": 0.5, "train/completions/mean_length": 7.0},
    )
    assert scalars({**known, "gradients": []})[1]["train/gradient"] == 9.0


def test_a_rollback_is_where_it_goes_back_to() -> None:
    event = {"event": "rollback", "step": 9, "to": 4, "reason": "", "lr_scale": 0.5}
    assert scalars(event) == (4, {"train/lr_scale": 0.5})


STAND_INS = {
    "wandb": """
from trackio import record

def init(*, project, name, id, resume, dir, config, mode):
    print("a word of its own")
    record("wandb", "init", dict(project=project, name=name, resume=resume, dir=dir, mode=mode, sections=sorted(config)))
    return Run()

class Run:
    def define_metric(self, name, *, step_metric):
        record("wandb", "define", [name, step_metric])

    def log(self, data):
        record("wandb", "log", data)

    def finish(self):
        print("and another")
        record("wandb", "finish", None)
""",
    "trackio": """
import json
import sys
import pathlib

def record(*what):
    with pathlib.Path(__file__).with_name("recorded.jsonl").open("a") as file:
        file.write(json.dumps(what) + chr(10))

def init(*, project, name, config, resume):
    record("trackio", "init", dict(project=project, name=name, resume=resume, sections=sorted(config)))

def log(metrics, step):
    record("trackio", "log", {"step": step, **metrics})

def finish():
    record("trackio", "finish", None)
""",
}
"""What takes the place of packages that are not installed here: the calls of them that W&B 0.31 and Trackio 0.43 were once run by."""


@pytest.mark.parametrize("mode", ["", "online"])
def test_the_others_are_told_the_same(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, code in STAND_INS.items():
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", mode)
    config = tiny.config(tmp_path, run={"report_to": ["wandb", "trackio"]}, optimizer={"steps": 2})
    assert main(["train", str(config), "--json"]) in (0, 3)
    assert all(json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()), (
        "what they print is no result"
    )
    calls = [json.loads(line) for line in (tmp_path / "recorded.jsonl").read_text().splitlines()]
    events = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    expected = [{"step": step, **values} for step, values in map(scalars, events)]
    for name in STAND_INS:
        own = [(kind, what) for who, kind, what in calls if who == name]
        assert [what for kind, what in own if kind == "log"] == json.loads(json.dumps(expected))
        kind, first = own[0]
        assert (kind, first["project"], first["resume"]) == ("init", "twinpass", "allow")
        assert {"model", "optimizer"} <= set(first["sections"])
        assert own[-1] == ("finish", None)
    first = calls[0][2]
    assert (first["name"], first["dir"], first["mode"]) == ("run", str(tmp_path / "run"), mode or "offline")
    for name in STAND_INS:
        monkeypatch.delitem(sys.modules, name)
