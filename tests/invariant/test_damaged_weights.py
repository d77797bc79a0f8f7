"""What a run has trained, damaged or gone: whoever reads it is told which of the run's files it is, and nothing is made of it."""

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from trained import train

import twinpass
from twinpass.cli.main import main
from twinpass.errors import TwinpassError


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
    kind, name, change, words = DAMAGE[damage]
    run, out = tmp_path / "run", tmp_path / "above/exported"
    shutil.copytree(runs[kind], run)
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
