"""Runs along exact gradients: they learn, continue to the same bits, and any step comes back."""

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from twinpass import Activated, AdamW, Backprop, Lora, finetune
from twinpass.cli.main import main
from twinpass.config.compose import build_embedded as build
from twinpass.config.load import load_config
from twinpass.train.descent import descent_of, lasting
from twinpass.train.history import History
from twinpass.train.journal import Journal, read
from twinpass.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("any_processor")

STEPS = 7
SECTIONS: dict[str, Any] = {
    "trainable": {"kind": "activated", "rank": 2, "targets": ["q_proj", "v_proj"]},
    "estimator": {"kind": "backprop"},
    "optimizer": {"kind": "adamw", "lr": 1e-2, "steps": STEPS, "batch_size": 4, "snapshot_every": 3},
}
UPPER = {**SECTIONS, "trainable": {"kind": "layers", "first": 1, "last": 2}}
FED_BACK = {
    **SECTIONS,
    "trainable": {"kind": "activated", "rank": 2, "targets": ["o_proj", "down_proj"], "first": 1},
    "estimator": {"kind": "feedback"},
}
MOVED: dict[str, Any] = {
    "trainable": {"kind": "full"},
    "estimator": {"kind": "feedback"},
    "optimizer": {"kind": "relative", "lr": 2e-2, "steps": STEPS, "batch_size": 4, "snapshot_every": 3},
}
KINDS = {"activated": SECTIONS, "layers": UPPER, "feedback": FED_BACK, "full": MOVED}
KINDS["by default"] = {**SECTIONS, "trainable": {"kind": "activated", "rank": 2, "targets": "outputs", "first": -1}}
KINDS["projections"] = {**MOVED, "trainable": {"kind": "projections", "layers": 1}}
KINDS["in bfloat16"] = {**SECTIONS, "engine": {"compute_dtype": "bfloat16"}}
KINDS["feedback in bfloat16"] = {**FED_BACK, "engine": {"compute_dtype": "bfloat16"}}
KINDS["feedback of lora"] = {**FED_BACK, "trainable": {**FED_BACK["trainable"], "kind": "lora", "first": 0}}


def weights(folder: Path) -> bytes:
    (file,) = [*folder.glob("*/adapter_model.safetensors"), *folder.glob("model/model.safetensors")]
    return file.read_bytes()


def test_memory_is_said_beforehand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path)
    said = " ".join(capsys.readouterr().err.split())
    assert "the graph of a step takes up to about" in said
    assert said.index("the graph of a step") < said.index("held-out accuracy before training")


def train(folder: Path, kind: str = "activated") -> Path:
    assert main(["train", str(tiny.config(folder, **KINDS[kind]))]) == 0
    return folder / "run"


def cut(run: Path, kept: int) -> None:
    """Leave what a crash after so many journal lines leaves."""
    journal = run / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:kept]))
    for name in ("summary.json", "metrics.jsonl"):
        (run / name).unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_and_continues_to_the_same_bits(tmp_path: Path, kind: str) -> None:
    run = train(tmp_path, kind)
    summary = json.loads((run / "summary.json").read_text())
    history = History.of(read(run / "journal.jsonl").records)
    assert history.steps[-1].estimate.loss < history.steps[0].estimate.loss
    assert sorted(history.snapshots) == [3, 6, STEPS]
    assert summary["hit_rate"] > 0
    assert all((step.observed.norm or 0) > 0 and not step.estimate.probes for step in history.steps)
    whole, records = weights(run), len(read(run / "journal.jsonl").records)
    for kept in (1, 3, 6, records - 2, records):
        again = tmp_path / f"again-{kept}"
        shutil.copytree(run, again)
        cut(again, 1 + kept)
        assert main(["train", "--resume", str(again)]) == 0
        assert weights(again) == whole, kept
        assert read(again / "journal.jsonl").check == read(run / "journal.jsonl").check


def test_a_run_in_bfloat16_is_used_where_that_saves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was begun where the processor multiplies tiles, and is used, and goes on, on one that does not."""
    run = train(tmp_path, "in bfloat16")
    whole = weights(run)
    cut(run, 5)
    monkeypatch.setattr("twinpass.config.engines.multiplies_tiles", lambda: False)
    assert main(["train", "--resume", str(run)]) == 0
    assert weights(run) == whole
    capsys.readouterr()
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in tiny.rows(4)))
    assert main(["predict", str(run), str(rows)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main(["train", str(run / "config.toml"), "--set", f"run.out={tmp_path / 'new'}"]) == 2
    assert "AMX" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["activated", "full"])
def test_any_step_comes_back(tmp_path: Path, kind: str) -> None:
    run = train(tmp_path, kind)
    for step in (0, 2, 3, 5, STEPS):
        assert main(["replay", str(run), "--step", str(step), "--out", str(tmp_path / f"at-{step}")]) == 0
    assert weights(tmp_path / f"at-{STEPS}") == weights(run)
    shutil.rmtree(run / "snapshots")
    assert main(["replay", str(run), "--step", "2", "--out", str(tmp_path / "again")]) == 0
    assert weights(tmp_path / "again") == weights(tmp_path / "at-2")
    assert weights(tmp_path / "at-3") not in (weights(tmp_path / "at-0"), weights(tmp_path / "at-2"))


def test_what_was_moved_is_all_that_is_stored_and_loads_again(tmp_path: Path) -> None:
    """Output projections alone: nothing else of the model, and no moments. The whole model is exported."""
    run = train(tmp_path, "full")
    moved = {f"model.layers.{i}.{name}.weight" for i in (0, 1) for name in ("self_attn.o_proj", "mlp.down_proj")}
    stored = load_file(run / "snapshots" / f"step-{STEPS}.safetensors")
    assert {name.removeprefix("weights.") for name in stored} == moved
    assert main(["export", str(run), "--format", "hf", "--out", str(tmp_path / "exported")]) == 0
    kept = History.of(read(run / "journal.jsonl").records).kept("best")
    assert main(["replay", str(run), "--step", str(kept), "--out", str(tmp_path / "kept")]) == 0
    model, before = (AutoModelForCausalLM.from_pretrained(tmp_path / each) for each in ("exported", "model"))
    again = load_file(tmp_path / "kept" / "model" / "model.safetensors")
    base = dict(before.named_parameters())
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, base[name]) == (name not in moved)
        assert name not in again or torch.equal(tensor, again[name])


def test_a_rollback_needs_no_other_weights_than_the_snapshot_before_it(tmp_path: Path) -> None:
    """Gone back to step 4, the run is at its snapshot's weights and one step, to the bit, whatever came between."""
    run = train(tmp_path, "full")
    history = History.of(read(run / "journal.jsonl").records)
    session = build(load_config(tmp_path / "config.toml"))
    journal = Journal.open(run / "journal.jsonl")[0]
    trainer = Trainer(session.engine, session.plan, journal, history)
    trainer._descent = descent_of(session.engine, session.plan, run)

    def no_reset() -> None:
        raise AssertionError("the weights of the beginning are read once more")

    session.engine.reset = no_reset  # type: ignore[method-assign]
    found = []
    for step in (6, 4, STEPS, 4):
        trainer.return_to(step)
        found.append({name: tensor.clone() for name, tensor in session.engine.parameters.items()})
    assert all(torch.equal(found[1][name], found[3][name]) for name in found[1])
    assert main(["replay", str(run), "--step", "4", "--out", str(tmp_path / "at-4")]) == 0
    replayed = load_file(tmp_path / "at-4" / "model" / "model.safetensors")
    assert all(torch.equal(replayed[name], tensor) for name, tensor in found[1].items())
    with closing(journal), pytest.raises(AssertionError, match="read once more"):
        trainer.return_to(2)


def test_a_snapshot_that_is_not_the_journals_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path)
    files = run / "snapshots"
    (files / "step-3.safetensors").replace(files / "step-6.safetensors")
    assert main(["replay", str(run), "--step", "6", "--out", str(tmp_path / "out")]) == 2
    assert "step-6.safetensors is not what the journal says" in capsys.readouterr().err
    assert main(["replay", str(run), "--step", "4", "--out", str(tmp_path / "out")]) == 0, "that of step 3 has gone"


@pytest.mark.parametrize("kind", ["activated", "full"])
def test_snapshots_far_behind_go_and_every_step_still_comes_back(tmp_path: Path, kind: str) -> None:
    """A run that stores every step, beside one that stores few: on disk is what lasts, and no weights are others."""
    few = train(tmp_path, kind)
    optimizer = {**KINDS[kind]["optimizer"], "snapshot_every": 1}
    sections = {**KINDS[kind], "optimizer": optimizer, "run": {"out": str(tmp_path / "every")}}
    assert main(["train", str(tiny.config(tmp_path, **sections))]) == 0
    every = tmp_path / "every"
    history = History.of(read(every / "journal.jsonl").records)
    assert sorted(history.snapshots) == list(range(1, STEPS + 1))
    files = {int(file.stem.removeprefix("step-")) for file in (every / "snapshots").iterdir()}
    assert files == lasting(history)
    assert len(files) < STEPS
    assert weights(every) == weights(few)
    for step in (1, 3, 5):
        for run in (few, every):
            assert main(["replay", str(run), "--step", str(step), "--out", str(tmp_path / f"{run.name}-{step}")]) == 0
        assert weights(tmp_path / f"every-{step}") == weights(tmp_path / f"few-{step}".replace("few", few.name))
    lines = (every / "journal.jsonl").read_bytes().splitlines()
    cut(every, next(i for i, line in enumerate(lines) if b'"kind":"snapshot"' in line and b'"step":3' in line) + 1)
    assert main(["train", "--resume", str(every)]) == 0
    assert weights(every) == weights(few), "the snapshot that it went on from had gone"


def test_other_rows_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path)
    rows = [{"text": "a great dull film", "label": 1} for _ in range(12)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["replay", str(run), "--step", "5", "--out", str(tmp_path / "out")]) == 2
    assert "taken again, gave a loss of" in capsys.readouterr().err


def test_from_python(tmp_path: Path) -> None:
    options: Any = {"prompt": "Review: {text}", "suffix": " Sentiment:", "options": (" bad", " good")}
    optimizer = AdamW(lr=1e-2, steps=4, batch_size=8)
    trainable = Activated(rank=2, targets=("q_proj",))
    summary = finetune(
        tiny.model(), tiny.tokenizer(), tiny.rows(8), tiny.rows(5), out=tmp_path / "run", trainable=trainable,
        estimator=Backprop(), optimizer=optimizer, **options,
    )  # fmt: skip
    assert summary["steps"] == 4
    ending = tiny.tokenizer()
    ending.add_special_tokens({"eos_token": "[UNK]"})
    text = finetune(
        tiny.model(), ending, tiny.rows(8), out=tmp_path / "text", prompt="Review:", suffix=" Sentiment:",
        completion=" {text}", trainable=Lora(rank=2, first=1), estimator=Backprop(), optimizer=optimizer,
    )  # fmt: skip
    losses = [step.estimate.loss for step in History.of(read(tmp_path / "text/journal.jsonl").records).steps]
    assert text["steps"] == 4
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"lr": 1e-3, "steps": 2}}, 'set "adamw"'),
        ({"estimator": {"probes": 1}}, 'set [estimator] kind = "backprop"'),
        ({"trainable": {"kind": "full"}}, '"backprop" is for adapters'),
        (
            {"trainable": UPPER["trainable"], "estimator": FED_BACK["estimator"]},
            'set "activated", "lora" or "projections"',
        ),
        ({"optimizer": MOVED["optimizer"]}, '"relative" does not go with such a gradient'),
        ({**MOVED, "optimizer": SECTIONS["optimizer"]}, 'set "relative"'),
        ({**MOVED, "optimizer": {"lr": 1e-3, "steps": 2}}, 'set "relative"'),
        ({**MOVED, "estimator": {"probes": 1}}, '"relative" steps along whole gradients'),
        ({**MOVED, "model": {"dtype": "bfloat16"}}, "lost on bfloat16 weights"),
        ({**MOVED, "engine": {"kind": "sglang"}}, "takes no derivatives"),
        ({**MOVED, "trainable": {"kind": "projections", "targets": ["x_proj"]}}, "has no linear layer x_proj"),
        ({**MOVED, "trainable": {"kind": "pattern", "pattern": "q_proj"}}, "does not write into the residual stream"),
        ({**MOVED, "optimizer": {**MOVED["optimizer"], "decay": 0.1}}, "steps have a fixed length"),
        ({**MOVED, "epsilon": {"value": 2e-3}}, "moves no weights to compare losses"),
        ({"estimator": FED_BACK["estimator"]}, "q_proj does not write into the residual stream"),
        ({"trainable": {"kind": "layers", "first": 0, "last": 2}}, "first above 0"),
        ({"model": {"dtype": "bfloat16"}, "trainable": UPPER["trainable"]}, "lost on bfloat16 weights"),
        ({"estimator": {"kind": "backprop", "probes": 2}}, "taken along no direction"),
        ({"engine": {"kind": "sglang"}}, "takes no derivatives"),
        ({**MOVED, "engine": {"compute_dtype": "bfloat16"}}, "rounds weights where they are multiplied"),
        ({"epsilon": {"kind": "adaptive"}}, "no eps to adapt"),
        ({"optimizer": {"kind": "adamw", "beta2": 1.0}}, "set it below 1"),
    ],
)
def test_what_does_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    sections = {**SECTIONS, **changes}
    if "estimator" in changes and "kind" not in changes["estimator"]:
        sections["estimator"] = {"kind": "spsa"}
    if "optimizer" in changes and "kind" not in changes["optimizer"]:
        sections["optimizer"] = {"kind": "sgd", **changes["optimizer"]}
    assert main(["train", str(tiny.config(tmp_path, **sections))]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_means_that_take_in_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="beta1: a mean that takes in nothing new"):
        AdamW(beta1=1.0)
