"""Runs that an earlier version began: their folders say of the estimator what is the engine's now, lack keys that came later, or hold what is refused now."""

import json
import tomllib
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny

import twinpass
from twinpass.cli.main import main
from twinpass.config import idle
from twinpass.errors import ConfigError, JournalError
from twinpass.train.folder import RunFolder

MOVED: Any = {"noise": "rademacher", "perturbation": "inplace"}
FULL: Mapping[str, Any] = {"trainable": {"kind": "full"}, "engine": MOVED}


@pytest.fixture
def begins_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are begun as earlier versions began them."""
    begin = RunFolder.begin

    def earlier(folder: RunFolder, values: Mapping[str, Any], *ground: Any) -> Any:
        engine = {key: value for key, value in values["engine"].items() if key not in MOVED and value is not None}
        rest = {key: value for key, value in values.items() if key != "engine"}
        moved = {"estimator": {**values["estimator"], **MOVED}, **({"engine": engine} if engine else {})}
        return begin(folder, {**rest, **moved}, *ground)

    monkeypatch.setattr(RunFolder, "begin", earlier)


def cut(run: Path) -> bytes:
    """Take the last steps off a run; returns the weights that it had."""
    journal, weights = run / "journal.jsonl", run / "model/model.safetensors"
    header, *records = journal.read_bytes().splitlines(keepends=True)
    for config in (tomllib.loads((run / "config.toml").read_text()), json.loads(header)["config"]):
        assert MOVED.items() <= config["estimator"].items()
        assert not MOVED.keys() & config.get("engine", {}).keys()
    journal.write_bytes(header + b"".join(records[:3]))
    final = weights.read_bytes()
    weights.unlink()
    return final


@pytest.mark.usefixtures("begins_as_before")
def test_it_resumes_replays_and_predicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, rows = tmp_path / "run", str(tmp_path / "eval.jsonl")
    assert main(["train", str(tiny.config(tmp_path, **FULL)), "--set", "run.keep=last", "--json"]) in (0, 3)
    final = cut(run)
    assert main(["train", "--resume", str(run), "--json"]) in (0, 3)
    assert (run / "model/model.safetensors").read_bytes() == final
    assert main(["replay", str(run), "--out", str(tmp_path / "again"), "--json"]) == 0
    assert (tmp_path / "again/model/model.safetensors").read_bytes() == final
    assert main(["predict", str(run), rows, "--out", str(tmp_path / "answers.jsonl")]) == 0
    assert main(["eval", str(run), rows, "--json"]) == 0
    capsys.readouterr()
    assert main(["train", str(run / "config.toml")]) == 2, "as a new configuration it is to be mended"
    said = capsys.readouterr().err
    assert "[estimator] noise: moved to [engine]" in said
    assert "[engine] perturbation = 'inplace'" in said


@pytest.mark.usefixtures("begins_as_before")
def test_a_run_from_python_resumes_and_predicts(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def train(**more: Any) -> None:
        twinpass.finetune(
            tiny.model(), tiny.tokenizer(), tiny.rows(6), prompt="Review: {text}", options=[" bad", " good"], out=run, keep="last",
            trainable=twinpass.Full(), optimizer=twinpass.Sgd(lr=1e-5, steps=4, batch_size=2), **MOVED, **more,
        )  # fmt: skip

    train()
    final = cut(run)
    train(resume=True)
    assert (run / "model/model.safetensors").read_bytes() == final
    answers = twinpass.load(run, model=tiny.model(), tokenizer=tiny.tokenizer()).predict([{"text": "a fine film"}])
    assert answers[0].answer in ("bad", "good")


@pytest.fixture
def let_through(monkeypatch: pytest.MonkeyPatch) -> Any:
    """For as long as it lasts, shares by which weights hardly move are let through, as earlier versions did."""

    @contextmanager
    def as_before() -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(idle, "SMALL", 0.0)
            yield

    return as_before


SLOW: Mapping[str, Any] = {"trainable": {"kind": "full"}, "estimator": {"kind": "feedback"}, "optimizer": {"lr": 3e-5}}


def test_a_run_of_what_is_refused_now_is_used_and_goes_on(tmp_path: Path, let_through: Any) -> None:
    run, rows, out = tmp_path / "run", str(tmp_path / "eval.jsonl"), tmp_path / "out"
    began = str(tiny.config(tmp_path, **SLOW))
    with let_through():
        assert main(["train", began, "--set", "run.keep=last", "--json"]) in (0, 3)
    final = (run / "model/model.safetensors").read_bytes()
    journal = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (run / "journal.jsonl").write_bytes(b"".join(journal[:4]))
    assert main(["train", "--resume", str(run), "--json"]) in (0, 3)
    assert (run / "model/model.safetensors").read_bytes() == final
    assert main(["replay", str(run), "--out", str(out / "again"), "--json"]) == 0
    assert main(["predict", str(run), rows, "--out", str(tmp_path / "answers.jsonl")]) == 0
    assert main(["export", str(run), "--format", "hf", "--out", str(out / "model")]) == 0
    assert main(["train", began, "--set", f"run.out={out / 'new'}"]) == 2, "one that begins now is refused"


def test_a_run_from_python_of_what_is_refused_now_goes_on(tmp_path: Path, let_through: Any) -> None:
    def train(**more: Any) -> Any:
        return twinpass.finetune(
            tiny.model(), tiny.tokenizer(), tiny.rows(6), prompt="Review: {text}", options=[" bad", " good"],
            trainable=twinpass.Full(), optimizer=twinpass.Relative(lr=3e-5, steps=4, batch_size=2), **more,
        )  # fmt: skip

    with let_through():
        before = train(out=tmp_path / "run")
    assert train(out=tmp_path / "run", resume=True)["steps"] == before["steps"] == 4
    with pytest.raises(ConfigError, match="the share of its own norm"):
        train(out=tmp_path / "new")


def test_a_run_from_python_goes_on_though_settings_were_added_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a policy and of an optimizer; with another value than the default it is another run."""
    begin, lacking = RunFolder.begin, {"reuse": "keep", "optimizer": "damping"}

    def earlier(folder: RunFolder, values: Mapping[str, Any], *ground: Any) -> Any:
        assert all(key in values[section] for section, key in lacking.items())
        known = {s: {key: v for key, v in own.items() if key != lacking.get(s)} for s, own in values.items()}
        return begin(folder, known, *ground)

    def train(reuse: twinpass.InvariantReuse, **more: Any) -> Any:
        return twinpass.finetune(
            tiny.model(), tiny.tokenizer(), tiny.rows(6), prompt="Review: {text}", options=[" bad", " good"], reuse=reuse,
            trainable=twinpass.Projections(layers=1), optimizer=twinpass.Relative(steps=4, batch_size=2), out=tmp_path / "run", **more,
        )  # fmt: skip

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "begin", earlier)
        before = train(twinpass.InvariantReuse())
    assert "keep" not in tomllib.loads((tmp_path / "run/config.toml").read_text())["reuse"]
    assert train(twinpass.InvariantReuse(), resume=True)["steps"] == before["steps"] == 4
    with pytest.raises(JournalError, match=r"\[reuse\] keep was .+, now .keys"):
        train(twinpass.InvariantReuse(keep="keys"), resume=True)
