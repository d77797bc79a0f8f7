"""Runs that must agree: uninterrupted, killed anywhere and resumed, replayed from the journal."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from broken_off import weights
from tensors import same
from tiers import some_fast

from twinpass.cli.main import main
from twinpass.train.history import History
from twinpass.train.journal import read

pytestmark = pytest.mark.usefixtures("any_processor")

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora-pulled-back": {"optimizer": {"decay": 2.0}},
    "lora-inplace": {"engine": {"perturbation": "inplace"}},
    "full": {"trainable": {"kind": "full"}},
    "full-gaussian": {"trainable": {"kind": "full"}, "engine": {"noise": "gaussian"}},
    "full-inplace": {"trainable": {"kind": "full"}, "engine": {"perturbation": "inplace"}},
    "full-bfloat16": {"trainable": {"kind": "full"}, "model": {"dtype": "bfloat16"}},
    "full-in-bfloat16": {"trainable": {"kind": "full"}, "engine": {"compute_dtype": "bfloat16"}},
    "activated-in-bfloat16": {
        "trainable": tiny.ACTIVATED,
        "engine": {"compute_dtype": "bfloat16"},
    },
    "layers": {"trainable": {"kind": "layers", "first": 1, "last": 2}},
    "blocks": {
        "trainable": {"kind": "layers", "first": 0, "last": 2, "block": 1, "every": 2},
        "optimizer": {"lr": 1e-2},
    },
    "blocks-inplace": {
        "trainable": {"kind": "layers", "first": 0, "last": 2, "block": 1, "every": 2},
        "engine": {"perturbation": "inplace"},
        "optimizer": {"lr": 1e-2},
    },
    "activated": {"trainable": tiny.ACTIVATED},
    "activated-pages": {
        "trainable": tiny.ACTIVATED,
        "reuse": {"page_size": 2, "budget": "24KiB"},
    },
    "activated-exact": {"trainable": tiny.ACTIVATED, "reuse": {"policy": "exact"}},
    "pattern": {"trainable": {"kind": "pattern", "pattern": "mlp|norm"}},
    "plain-path": {"use": {"model": "bloom"}, "trainable": {"kind": "full"}},
}


def events_of(run: Path) -> list[tuple[str, int]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["event"], row["step"]) for row in rows]


FAST = ("lora-pulled-back", "full-inplace", "full-bfloat16", "blocks", "activated-pages")


@pytest.fixture(params=some_fast(KINDS, FAST))
def finished(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A finished run of each kind."""
    if request.param == "plain-path":
        request.applymarker(pytest.mark.filterwarnings("ignore:BloomForCausalLM does not give the same scores"))
    config = tiny.config(tmp_path, **KINDS[request.param])
    assert main(["train", str(config), "--json"]) == 0
    return tmp_path / "run"


@pytest.mark.filterwarnings("ignore:BloomForCausalLM does not give the same scores")
def test_killed_and_resumed_and_replayed(finished: Path, tmp_path: Path) -> None:
    whole = (finished / "journal.jsonl").read_bytes()
    final = weights(finished)
    lines = whole.splitlines(keepends=True)
    moments = [len(lines[0]), sum(map(len, lines[:4])), sum(map(len, lines[:6])) + 17]
    for i, moment in enumerate(moments):
        run = tmp_path / f"killed-{i}"
        shutil.copytree(finished, run)
        for name in ("adapter", "model", "plots", "summary.json"):
            shutil.rmtree(run / name, ignore_errors=True)
        (run / "summary.json").unlink(missing_ok=True)
        (run / "journal.jsonl").write_bytes(whole[:moment])
        assert main(["train", "--resume", str(run), "--json"]) == 0
        assert (run / "journal.jsonl").read_bytes() == whole
        assert same(weights(run), final)
        assert events_of(run) == events_of(finished)
    assert main(["replay", str(finished), "--out", str(tmp_path / "replayed"), "--json"]) == 0
    assert same(weights(tmp_path / "replayed"), final)


def test_a_run_is_replayed_on_another_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it had run on a GPU, where there is none now."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["train", str(tiny.config(tmp_path, engine={"device": "cpu"})), "--json"]) == 0
    run = tmp_path / "run"
    config = run / "config.toml"
    config.write_text(config.read_text().replace('device = "cpu"', 'device = "cuda"'))
    assert main(["replay", str(run), "--out", str(tmp_path / "replayed"), "--json"]) == 0
    assert same(weights(tmp_path / "replayed"), weights(run))
    assert main(["train", "--resume", str(run), "--json"]) == 2, "to go on, a device that is there has to be named"


def test_a_step_in_the_middle(tmp_path: Path) -> None:
    short = tiny.config(tmp_path / "short", optimizer={"steps": 4, "schedule": "constant"})
    long = tiny.config(tmp_path / "long", optimizer={"steps": 8, "schedule": "constant"})
    assert main(["train", str(short), "--json"]) == main(["train", str(long), "--json"]) == 0
    assert main(["replay", str(tmp_path / "long/run"), "--step", "4", "--json"]) == 0
    assert same(weights(tmp_path / "long/run/step-4"), weights(tmp_path / "short/run"))


def test_adapters_are_pulled_back_to_where_they_began(tmp_path: Path) -> None:
    """The first step of two runs is along the same gradient: they differ by what decay takes of theta_0, lr times decay."""
    found = {}
    for decay in (0.0, 4.0):
        optimizer = {"lr": 0.05, "steps": 1, "schedule": "constant", "decay": decay}
        config = tiny.config(tmp_path / str(decay), optimizer=optimizer, run={"keep": "last", "seed": 3})
        assert main(["train", str(config), "--json"]) in (0, 3)
        assert main(["replay", str(tmp_path / str(decay) / "run"), "--step", "0", "--json"]) == 0
        run = Path(tomllib.loads(config.read_text())["run"]["out"])
        found[decay] = (weights(run / "step-0"), weights(run))
    (start, plain), (again, pulled) = found.values()
    assert same(start, again)
    assert not same(plain, pulled)
    for name, tensor in start.items():
        torch.testing.assert_close(plain[name] - pulled[name], 0.2 * tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.plots
def test_the_run_folder_and_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny.config(tmp_path)
    capsys.readouterr()
    assert main(["train", str(config), "--json"]) == 0
    said = capsys.readouterr()
    assert not said.err, "with --json, nothing but JSON"
    *events, end = map(json.loads, said.out.splitlines())
    run = tmp_path / "run"
    assert events == [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events].count("step") == 8
    assert end.pop("event") == "end"
    summary = json.loads((run / "summary.json").read_text())
    assert end == summary
    names = {file.name for file in run.iterdir()}
    assert names == {
        "config.toml",
        "reading.json",
        "journal.jsonl",
        "metrics.jsonl",
        "summary.json",
        "adapter",
        "plots",
    }
    assert {file.name for file in (run / "plots").iterdir()} == {"loss.png", "gradient.png", "accuracy.png"}
    wanted = (
        "metric_name base_metric final_metric steps train_seconds total_seconds hit_rate token_layers peak_rss_bytes"
    )
    assert set(wanted.split()) <= summary.keys()
    layers, lanes = 2, 4
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    demand = sum(row["token_layers"]["demand"] for row in rows if row["event"] == "step")
    assert summary["token_layers"]["demand"] == demand > 0
    assert demand % (layers * lanes) == 0
    assert summary["hit_rate"] == pytest.approx(1 - summary["token_layers"]["computed"] / demand)
    assert main(["eval", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metric"] == summary["final_metric"]
    assert main(["eval", str(run), "--step", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metric"] == summary["base_metric"]


@pytest.mark.parametrize(("kind", "lr"), [("lora", 0.02), ("full", 1e-5), ("full-inplace", 1e-5)])
def test_divergence_rolls_back_and_stops(
    kind: str, lr: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild: dict[str, Any] = {
        "lr": lr,
        "steps": 60,
        "clip": 0.0,
        "guard_window": 4,
        "guard_metric": 0.0,
        "guard_loss": 1e-6,
        "schedule": "constant",
    }
    settings = {**KINDS[kind], "optimizer": {**wild, "guard_rollbacks": 2}}
    config = tiny.config(tmp_path, **settings)
    assert main(["train", str(config), "--json"]) == 1
    assert "lower optimizer.lr" in capsys.readouterr().err
    contents = read(tmp_path / "run/journal.jsonl")
    rollbacks = [record for record in contents.records if record["kind"] == "rollback"]
    assert [record["lr_scale"] for record in rollbacks] == [0.5, 0.25]
    assert History.of(contents.records).lr_scale == 0.25
    events = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "rollback" for event in events) == 2
    assert main(["train", "--resume", str(tmp_path / "run"), "--json"]) == 1


def test_resume_refuses_other_ground(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny.config(tmp_path)
    assert main(["train", str(config), "--json"]) == 0
    run = tmp_path / "run"
    assert main(["train", str(config), "--json"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("lr = 0.001", "lr = 0.002"))
    assert main(["train", "--resume", str(run), "--json"]) == 2
    assert "its settings are others ([optimizer] lr was 0.001, now 0.002)" in capsys.readouterr().err
    (run / "config.toml").write_text(text)
    model = tiny.model()
    with torch.no_grad():
        model.get_parameter("model.norm.weight")[0] += 1e-3
    model.save_pretrained(tmp_path / "model")
    assert main(["replay", str(run), "--json"]) == 2
    assert "does not belong to this run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "give either a CONFIG file, or --resume RUN"),
        (["train", "nowhere.toml"], "cannot be read"),
        (["train", "{config}", "--set", "optimizer.lr=fast"], "[optimizer] lr"),
        (["train", "{config}", "--set", "task.train=none.jsonl"], "there is no such file"),
        (["train", "{config}", "--set", "model.path=/no/such/model"], "there is no folder"),
        (["train", "{config}", "--set", "task.prompt=Say {title}"], "row 1: the prompt uses {title}, the row has only"),
        (["train", "{config}", "--set", "trainable.targets=['w']"], "match no linear layer"),
        (["eval", "{config}", "--step", "3"], "--step needs the folder of a run"),
        (["replay", "nowhere"], "there is no journal here"),
    ],
)
def test_bad_input(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny.config(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main([argument.replace("{config}", str(config)) for argument in arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_model_that_cannot_be_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny.config(tmp_path)
    model = tiny.model()
    with torch.no_grad():
        model.get_parameter("model.norm.weight")[3] = torch.nan
    model.save_pretrained(tmp_path / "model")
    assert main(["train", str(config)]) == 2
    assert "model.norm.weight holds NaN" in capsys.readouterr().err
    file = tmp_path / "model/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "t5", "architectures": ["T5Model"]}))
    assert main(["train", str(config)]) == 2
    assert "without a causal language-model head" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "kind", some_fast(["blocks", "blocks-inplace", "layers", "activated", "activated-spill"], ["blocks-inplace"])
)
def test_resumed_after_every_record(kind: str, tmp_path: Path) -> None:
    settings = dict(KINDS[kind.removesuffix("-spill")])
    if kind == "activated-spill":
        settings["reuse"] = {"policy": "activated", "spill": str(tmp_path / "kv")}
    config = tiny.config(tmp_path, **settings)
    assert main(["train", str(config), "--json"]) == 0
    whole = (tmp_path / "run/journal.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    for count in range(1, len(lines)):
        run = tmp_path / f"resumed-{count}"
        run.mkdir()
        shutil.copy(tmp_path / "run/config.toml", run)
        (run / "journal.jsonl").write_bytes(b"".join(lines[:count]))
        assert main(["train", "--resume", str(run), "--json"]) == 0
        assert (run / "journal.jsonl").read_bytes() == whole, f"after {count} records"


def test_resumed_after_evictions_to_rounding(tmp_path: Path) -> None:
    """What was pushed out may be computed in other company, which moves the last bits and nothing else."""
    settings: dict[str, Any] = {"reuse": {"budget": "2KiB"}, **KINDS["activated"]}
    config = tiny.config(tmp_path, **settings)
    assert main(["train", str(config), "--json"]) == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["kv_bytes"]["evicted"] > 0
    whole = read(tmp_path / "run/journal.jsonl").records
    for count in (3, 6):
        run = tmp_path / f"resumed-{count}"
        run.mkdir()
        shutil.copy(tmp_path / "run/config.toml", run)
        lines = (tmp_path / "run/journal.jsonl").read_bytes().splitlines(keepends=True)
        (run / "journal.jsonl").write_bytes(b"".join(lines[:count]))
        assert main(["train", "--resume", str(run), "--json"]) == 0
        pairs = zip(whole, read(run / "journal.jsonl").records, strict=True)
        losses = [(a["losses"], b["losses"]) for a, b in pairs if a["kind"] == "step"]
        assert losses
        assert all(a == pytest.approx(b, abs=1e-4) for one, two in losses for a, b in zip(one, two, strict=True))
