"""What a run has trained, damaged or gone: whoever reads it is told which of the run's files it is, and nothing is made of it."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from trained import ROWS, train

import twinpass
from twinpass.cli.main import main
from twinpass.errors import ModelError, TwinpassError
from twinpass.report.checksums import NAME
from twinpass.use.predictions import digest_of


def lacking(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the first."""
    return dict(list(tensors.items())[1:])


def shorter(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With a row less in the first."""
    return {name: tensor[:-1] if i == 0 else tensor for i, (name, tensor) in enumerate(tensors.items())}


def rewritten(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], file: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}, file, {"format": "pt"})


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def replaced(file: Path) -> None:
    """By a folder."""
    file.unlink()
    file.mkdir()


TENSORS = {"lora": "adapter/adapter_model.safetensors", "full": "model/model.safetensors"}
DAMAGE: dict[str, tuple[str, str, Callable[[Path], object], str]] = {
    "adapter gone": ("lora", TENSORS["lora"], Path.unlink, "it is not there"),
    "adapter a folder": ("lora", TENSORS["lora"], replaced, "a folder is in the way"),
    "adapter cut": ("lora", TENSORS["lora"], cut, "is damaged"),
    "adapter incomplete": ("lora", TENSORS["lora"], partial(rewritten, lacking), "an A and a B of every module"),
    "setup gone": ("lora", "adapter/adapter_config.json", Path.unlink, "it is not there"),
    "setup cut": ("lora", "adapter/adapter_config.json", cut, "is damaged"),
    "setup of something else": ("lora", "adapter/adapter_config.json", lambda file: file.write_text("[1]"), "no rank"),
    "model gone": ("full", TENSORS["full"], Path.unlink, "model"),
    "model cut": ("full", TENSORS["full"], cut, "its weights"),
    "model incomplete": ("full", TENSORS["full"], partial(rewritten, lacking), "would be random"),
    "model of another shape": ("full", TENSORS["full"], partial(rewritten, shorter), "and [97, 32] in the model"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return {kind: train(tmp_path_factory.mktemp(kind), kind) for kind in ("lora", "full")}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_named_and_nothing_is_made_of_it(
    damage: str, runs: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a run as earlier versions left it, without hashes."""
    kind, name, change, words = DAMAGE[damage]
    run, out = tmp_path / "run", tmp_path / "above/exported"
    shutil.copytree(runs[kind], run)
    ((run / name).parent / NAME).unlink()
    commands = [["--format", "hf"]] if kind == "full" else [["--format", "peft"], ["--format", "hf", "--merge"]]
    assert main(["export", str(run), *commands[0], "--out", str(tmp_path / "sound"), "--json"]) == 0
    change(run / name)
    there = set(tmp_path.rglob("*"))
    for options in commands:
        capsys.readouterr()
        assert main(["export", str(run), *options, "--out", str(out), "--json"]) in (1, 2)
        error = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
        assert str((run / name).parent) in error
        assert words in error
        assert str(out) not in error
        assert "\n" not in error
        assert set(tmp_path.rglob("*")) == there
    with pytest.raises(TwinpassError) as refused:
        twinpass.load(run)
    assert words in str(refused.value)


def flipped(file: Path) -> None:
    """The last bit of one number's fraction: the file is as sound as before, to any library."""
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)


def edited(file: Path) -> None:
    before = file.read_text()
    file.write_text(before.replace('"lora_alpha": 16.0', '"lora_alpha": 17.0').replace("1e-06", "2e-06"))
    assert file.read_text() != before


CHANGES: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "a bit of an adapter": ("lora", TENSORS["lora"], flipped),
    "an adapter's setup": ("lora", "adapter/adapter_config.json", edited),
    "a bit of a model": ("full", TENSORS["full"], flipped),
    "a model's configuration": ("full", "model/config.json", edited),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_sound_and_another_than_was_written_is_refused_by_all_who_read_it(
    change: str, runs: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, name, altered = CHANGES[change]
    run, rows, out = tmp_path / "run", tmp_path / "rows.jsonl", tmp_path / "above/exported"
    shutil.copytree(runs[kind], run)
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    before = (run / name).read_bytes()
    answers = twinpass.load(run).predict(ROWS)
    altered(run / name)
    there = set(tmp_path.rglob("*"))
    formats = [["hf", "--merge"], ["peft"]] if kind == "lora" else [["hf"]]
    for command in (
        ["predict", str(run), str(rows)],
        ["generate", str(run), "--prompt", "a fine film"],
        *(["export", str(run), "--out", str(out), "--format", *chosen] for chosen in formats),
    ):
        capsys.readouterr()
        assert main([*command, "--json"]) == 2, command
        error = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
        assert str(run / name) in error
        assert "is not what was written there" in error
        assert set(tmp_path.rglob("*")) == there
    (written_again,) = re.findall(r"write it again: 'twinpass (.*?)'", error)
    (given_up,) = re.findall(r"on purpose, remove (\S+),", error)
    kept = tmp_path / "kept"
    Path(given_up).rename(kept)
    assert len(twinpass.load(run).predict(ROWS)) == len(ROWS), "a change that was meant is used"
    kept.rename(given_up)
    main(shlex.split(written_again))
    assert (run / name).read_bytes() == before
    assert twinpass.load(run).predict(ROWS) == answers


@pytest.mark.parametrize("kind", TENSORS)
def test_hashes_are_those_that_sha256sum_reads(kind: str, runs: Mapping[str, Path]) -> None:
    folder = (runs[kind] / TENSORS[kind]).parent
    checked = subprocess.run(["sha256sum", "-c", NAME], cwd=folder, capture_output=True, text=True, check=True)
    assert len(checked.stdout.splitlines()) == len(list(folder.iterdir())) - 1
    assert f"{Path(TENSORS[kind]).name}: OK" in checked.stdout


def test_predictions_name_weights_alike_with_and_without_hashes(runs: Mapping[str, Path], tmp_path: Path) -> None:
    older = tmp_path / "adapter"
    shutil.copytree(runs["lora"] / "adapter", older)
    (older / NAME).unlink()
    assert digest_of(older) == digest_of(runs["lora"] / "adapter")
    flipped(older / "adapter_model.safetensors")
    assert digest_of(older) != digest_of(runs["lora"] / "adapter")


@pytest.mark.parametrize(
    "data", [b"", b"\xff\0", b"nothing of the kind\n", b"0" * 64 + b"  a/../../b\n", b"0" * 64 + b"  a\0b\n"]
)
def test_damaged_hashes_are_no_hashes_of_anything(data: bytes, runs: Mapping[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["lora"], run)
    (run / "adapter" / NAME).write_bytes(data)
    with pytest.raises(ModelError, match=r"SHA256SUMS is damaged: .* or write it again: 'twinpass train --resume"):
        twinpass.load(run)


def test_weights_of_a_step_are_held_to_what_replay_wrote(
    runs: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["lora"], run)
    assert main(["replay", str(run), "--step", "2"]) == 0
    answers = twinpass.load(run, 2).predict(ROWS)
    flipped(run / "step-2/adapter/adapter_model.safetensors")
    with pytest.raises(ModelError, match="is not what was written there") as refused:
        twinpass.load(run, 2)
    (again,) = re.findall(r"write it again: 'twinpass (.*?)'", str(refused.value))
    assert main(shlex.split(again)) == 0
    assert twinpass.load(run, 2).predict(ROWS) == answers


def test_a_run_made_in_python_writes_its_weights_again(tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "run/adapter/adapter_model.safetensors"

    def tuned(**options: Any) -> None:
        task: dict[str, Any] = {
            "prompt": "Review: {text}",
            "options": [" bad", " good"],
            "trainable": twinpass.Lora(rank=2),
        }
        steps = twinpass.Sgd(lr=0.1, steps=2, batch_size=4)
        twinpass.finetune(tiny.model(), tiny.tokenizer(), tiny.rows(8), **task, optimizer=steps, out=run, **options)

    tuned()
    before = file.read_bytes()
    flipped(file)
    with pytest.raises(
        ModelError, match=r"is not what was written there.*again: twinpass\.finetune\(\.\.\., resume=True\)"
    ):
        twinpass.load(run, model=tiny.model(), tokenizer=tiny.tokenizer())
    tuned(resume=True)
    assert file.read_bytes() == before
    assert twinpass.load(run, model=tiny.model(), tokenizer=tiny.tokenizer()).predict(ROWS[:1])


def test_a_tokenizer_that_cannot_be_read_is_not_the_new_folders_fault(
    runs: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Converters take SentencePiece models from where the base model lies."""
    run, out = runs["lora"], tmp_path / "above/exported"
    odd = run.parent / "model/tokenizer.model"
    odd.mkdir()
    try:
        assert main(["export", str(run), "--format", "gguf-ready", "--out", str(out), "--json"]) == 1
    finally:
        odd.rmdir()
    error = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    assert error == f"{odd} cannot be read: Is a directory; a folder is in the way; move it, or name another place"
    assert not out.parent.exists()
