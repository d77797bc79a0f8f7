"""Runs under approximate policies and adaptive eps: killed anywhere and resumed, replayed, rolled back, to the same bits."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import tiny
from tensors import same
from tiers import some_fast
from torch import Tensor

import twinpass
from twinpass.cli.main import main
from twinpass.config.compose import Session, build_embedded
from twinpass.config.load import load_config
from twinpass.core import StepReport
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import JournalError
from twinpass.train.folder import RunFolder
from twinpass.train.header import header
from twinpass.train.history import History
from twinpass.train.journal import Journal, read
from twinpass.train.trainer import Trainer

TRANSPORTED: dict[str, Any] = {"policy": "transported", "refresh": 3, "tolerance": 10.0, "check": 0.2}
DEBIASED: dict[str, Any] = {"policy": "debiased", "probability": 0.4}
ADAPTIVE: dict[str, Any] = {"kind": "adaptive", "start": 1e-2, "every": 4}
SHOTS: dict[str, Any] = {"shots": 2}
"""Demonstrations are what prompts share, here 14 tokens of 17 to 20."""

KINDS: dict[str, dict[str, Any]] = {
    "reflected": {"reuse": {"policy": "reflected", "tolerance": 10.0, "check": 0.2}},
    "reflected-graded": {"reuse": {"policy": "reflected", "tolerance": 0.2, "check": 0.2}, "epsilon": {"value": 1e-2}},
    "transported": {"reuse": TRANSPORTED, "estimator": {"probes": 1}},
    "transported-lora": {"reuse": TRANSPORTED, "trainable": {"kind": "lora", "rank": 2, "alpha": 4.0}},
    "debiased-frozen": {"reuse": {**DEBIASED, "inner": {"policy": "frozen"}}},
    "debiased-transported": {
        "reuse": {**DEBIASED, "inner": {"policy": "transported", "refresh": 3, "tolerance": 10.0}},
        "estimator": {"probes": 1},
    },
    "one-sided-transported": {"reuse": TRANSPORTED, "estimator": {"kind": "one_sided", "probes": 2}},
    "adaptive": {"epsilon": ADAPTIVE},
    "adaptive-transported": {
        "epsilon": ADAPTIVE,
        "reuse": TRANSPORTED,
        "estimator": {"probes": 1},
        "optimizer": {"steps": 16, "lr": 1e-5},
    },
}


@dataclass(frozen=True)
class Finished:
    """A run that went through: its journal, what it held in memory in the end, and its weights."""

    journal: bytes
    history: History
    weights: Mapping[str, Tensor]

    @property
    def steps(self) -> list[StepReport]:
        return list(self.history.steps)


def config_of(folder: Path, kind: Mapping[str, Any]) -> Path:
    return tiny.config(folder, **{"trainable": {"kind": "full"}, "task": SHOTS, **kind})


def weights_of(engine: TorchEngine) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in engine.parameters.items()}


def composed(config: Path) -> tuple[Session[TorchEngine], dict[str, Any]]:
    loaded = load_config(config)
    run = build_embedded(loaded)
    return run, header(loaded.values, run.engine, run.ground)


def train(config: Path, path: Path, begun: bytes = b"") -> Finished:
    """Begin a journal, or go on with what was ``begun``."""
    run, head = composed(config)
    path.write_bytes(begun)
    if begun:
        journal, contents = Journal.open(path)
    else:
        path.unlink()
        journal, contents = Journal.create(path, head), read(path)
    with closing(journal):
        history = Trainer(run.engine, run.plan, journal, History.of(contents.records)).run()
    return Finished(path.read_bytes(), history, weights_of(run.engine))


def assert_resumes(config: Path, whole: Finished, path: Path, every: int) -> None:
    """Cut after every so many records, after every rollback, and once in the middle of a record."""
    lines = whole.journal.splitlines(keepends=True)
    ends = list(accumulate(map(len, lines)))
    rollbacks = [end for end, line in zip(ends, lines, strict=True) if b'"kind":"rollback"' in line]
    for cut in (*ends[:-1:every], *rollbacks, ends[5] + 40):
        again = train(config, path, whole.journal[:cut])
        assert again.journal == whole.journal, f"cut at byte {cut}"
        assert same(again.weights, whole.weights)


@pytest.mark.parametrize("kind", some_fast(KINDS, ("reflected-graded", "debiased-transported", "adaptive-transported")))
def test_resumed_at_several_points_and_replayed(kind: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, KINDS[kind])
    whole = train(config, tmp_path / "whole.jsonl")
    assert_it_approximates(kind, whole.steps)
    assert_resumes(config, whole, tmp_path / "resumed.jsonl", every=3 if kind == "transported" else 5)
    contents = read(tmp_path / "whole.jsonl")
    history = History.of(contents.records)
    assert [repr(step.observed) for step in history.steps] == [repr(step.observed) for step in whole.steps]
    replayed, _ = composed(config)
    replayed.engine.update(history.terms())
    assert same(weights_of(replayed.engine), whole.weights)


def assert_it_approximates(kind: str, steps: list[StepReport]) -> None:
    """What the run is about did happen in it."""
    observed = [step.observed for step in steps]
    if "transported" in kind:
        assert {o.prefix.age for o in observed} >= {0, 1, 2}
        assert any(o.prefix.carried is not None for o in observed)
    if "reflected" in kind or kind == "transported":
        assert sum(o.prefix.accepted > 0 for o in observed) > 2
        assert any(o.prefix.errors for o in observed)
    if kind == "reflected-graded":
        assert any(o.prefix.accepted and o.prefix.rejected for o in observed)
    if "debiased" in kind:
        assert {bool(o.exact) for o in observed} == {True, False}
    if "adaptive" in kind:
        assert len({step.estimate.eps for step in steps}) > 2
        assert {bool(o.ladder) for o in observed} == {True, False}
    else:
        assert not any(o.ladder for o in observed)


WILD: dict[str, Any] = {"clip": 0.0, "guard_metric": 0.0, "schedule": "constant"}
DIVERGENT: dict[str, dict[str, Any]] = {
    "loss": {**WILD, "steps": 9, "lr": 1e-4, "guard_window": 2, "guard_loss": 0.5, "guard_lr": 0.1},
    "not finite": {**WILD, "steps": 6, "lr": 1e30, "guard_loss": 0.0, "guard_lr": 1e-36},
}


@pytest.mark.parametrize("why", DIVERGENT)
def test_a_rollback_drops_what_is_carried_and_a_resume_after_it_agrees(why: str, tmp_path: Path) -> None:
    kind = {"reuse": {**TRANSPORTED, "refresh": 8, "check": 0.0}, "estimator": {"probes": 1}}
    config = config_of(tmp_path, {**kind, "optimizer": DIVERGENT[why]})
    whole = train(config, tmp_path / "whole.jsonl")
    records = [record for record in read(tmp_path / "whole.jsonl").records if record["kind"] != "evaluation"]
    ages = [record["observed"]["prefix"]["age"] if record["kind"] == "step" else None for record in records]
    back = [i for i, record in enumerate(records) if record["kind"] == "rollback"]
    assert {records[i]["discarded"] for i in back} == {0 if why == "loss" else 1}
    assert [ages[i + 1] for i in back] == [0] * len(back)
    assert max(age for age in ages if age is not None) > 2
    if why == "loss":
        assert ages[records[back[0]]["to"] - 1] == 5  # younger than refresh: the next step was planned to carry on
    assert_resumes(config, whole, tmp_path / "resumed.jsonl", every=3)


@pytest.mark.parametrize("kind", ["transported", "debiased-frozen"])
def test_the_commands_agree_with_the_trainer(kind: str, tmp_path: Path) -> None:
    """``train --resume`` and ``replay``, which go by the run's own folder."""
    config = config_of(tmp_path, KINDS[kind])
    whole = train(config, tmp_path / "whole.jsonl")
    run = tmp_path / "run"
    assert main(["train", str(config), "--json"]) == 0
    assert (run / "journal.jsonl").read_bytes() == whole.journal
    (run / "journal.jsonl").write_bytes(b"".join(whole.journal.splitlines(keepends=True)[:7]))
    assert main(["train", "--resume", str(run), "--json"]) == 0
    assert (run / "journal.jsonl").read_bytes() == whole.journal
    assert main(["replay", str(run), "--out", str(tmp_path / "replayed"), "--json"]) == 0
    ((one,), (two,)) = ((folder.glob("model/*.safetensors")) for folder in (run, tmp_path / "replayed"))
    assert one.read_bytes() == two.read_bytes()


class Halved(twinpass.ConstantEpsilon):
    """A schedule of one's own, with the keys of another."""

    def at(self, step: int, known: Any) -> float:
        return super().at(step, known) / 2


FROZEN, REFLECTED = twinpass.FrozenReuse(), twinpass.ReflectedReuse()
ALIKE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "inner": ({"reuse": twinpass.DebiasedReuse(inner=FROZEN)}, {"reuse": twinpass.DebiasedReuse(inner=REFLECTED)}),
    "joined": (
        {"epsilon": twinpass.JoinedEpsilon((Halved(value=1e-3), twinpass.ConstantEpsilon(1e-3)), (2,))},
        {"epsilon": twinpass.JoinedEpsilon((twinpass.ConstantEpsilon(1e-3), twinpass.ConstantEpsilon(1e-3)), (2,))},
    ),
    "epsilon": ({"epsilon": Halved(value=1e-3)}, {"epsilon": twinpass.ConstantEpsilon(1e-3)}),
}
"""What a run from Python is begun with, and what says the same but for its class, or has keys of its own at their defaults."""


def tuned(out: Path, **given: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "prompt": "Review: {text}",
        "options": [" bad", " good"],
        "shots": 2,
        "trainable": twinpass.Full(),
    }
    options |= {"estimator": twinpass.Spsa(probes=2), "optimizer": twinpass.Sgd(lr=1e-4, steps=3, batch_size=2)}
    return twinpass.finetune(tiny.model(), tiny.tokenizer(), tiny.rows(8), out=out, **{**options, **given})


@pytest.mark.parametrize("kind", ALIKE)
def test_a_run_from_python_goes_on_under_what_it_began_with_alone(kind: str, tmp_path: Path) -> None:
    own, other = ALIKE[kind]
    journal = tmp_path / "run/journal.jsonl"
    tuned(tmp_path / "run", **own)
    whole = journal.read_bytes()
    journal.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    with pytest.raises(JournalError, match=r"its settings are others \(\[(reuse|epsilon)\] .+ was .+, now .+\)"):
        tuned(tmp_path / "run", **other, resume=True)
    tuned(tmp_path / "run", **own, resume=True)
    assert journal.read_bytes() == whole


@pytest.mark.parametrize("kind", ["inner", "epsilon"])
def test_where_no_kind_was_written_it_is_told_by_its_keys(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As earlier versions wrote it: as much as an object's keys said of it."""
    begin, (own, other) = RunFolder.begin, ALIKE[kind]

    def earlier(folder: RunFolder, values: Mapping[str, Any], *ground: Any) -> Any:
        inner = {key: value for key, value in values["reuse"].get("inner", {}).items() if key != "policy"}
        reuse = {**values["reuse"], **({"inner": inner} if inner else {})}
        epsilon = {key: value for key, value in values["epsilon"].items() if key != "kind"}
        return begin(folder, {**values, "reuse": reuse, "epsilon": epsilon}, *ground)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "begin", earlier)
        before = tuned(tmp_path / "run", **own)
    assert tuned(tmp_path / "run", **own, resume=True)["steps"] == before["steps"] == 3
    if kind == "inner":
        with pytest.raises(JournalError, match=r"its settings are others \(\[(reuse|epsilon)\] .+ was .+, now .+\)"):
            tuned(tmp_path / "run", **other, resume=True)
