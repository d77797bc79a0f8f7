"""A checkpoint loads exactly as it is, or is refused in one line that names what is wrong; its code runs only when trusted."""

import builtins
import io
import json
import os
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import tiny
import torch
from checkpoints import Change, refused
from safetensors.torch import load_file, save_file
from transformers import Llama4Config, Llama4ForConditionalGeneration, dynamic_module_utils

from twinpass.cli.main import main
from twinpass.errors import ModelError
from twinpass.model.load import load
from twinpass.model.source import absolute, locate


@pytest.fixture(scope="module", params=["llama", "llama-untied"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("saved") / "model", request.param)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("untied") / "model", "llama-untied")


@pytest.fixture
def copy(untied: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(untied, tmp_path / "copy"))


def rewrite(folder: Path, change: Change) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def edit(folder: Path, /, file: str = "config.json", **values: Any) -> Path:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def test_weights_are_the_checkpoints(saved: Path) -> None:
    model, _ = load(str(saved))
    held = load_file(saved / "model.safetensors")
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, held.pop(name)), name
    assert not held


def test_tied_weights_that_are_there_twice_load(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "both"))
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    load(str(folder))


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"])
def test_a_missing_tensor_is_named(copy: Path, name: str) -> None:
    refused(rewrite(copy, lambda tensors: tensors.__delitem__(name)), f"{name} is not in it, and would be random")


def test_a_missing_layer_is_named(copy: Path) -> None:
    refused(edit(copy, num_hidden_layers=3), "model.layers.2.", "and 12 more are not in it")


def test_embeddings_that_are_tied_to_nothing_are_missing(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "tied", "llama")
    refused(rewrite(folder, lambda tensors: tensors.__delitem__("model.embed_tokens.weight")), "embed_tokens.weight")


def test_a_left_over_tensor_is_named(copy: Path) -> None:
    change: Change = lambda tensors: tensors.update(extra=torch.zeros(3))  # noqa: E731
    refused(rewrite(copy, change), "extra is in it, and has no place in the model")


def test_a_left_over_layer_is_named(copy: Path) -> None:
    refused(edit(copy, num_hidden_layers=1), "model.layers.1.", "have no place in the model")


def test_what_transformers_knows_to_be_left_over_is(copy: Path) -> None:
    load(str(rewrite(copy, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}))))


def test_shapes_that_differ_are_given(copy: Path) -> None:
    refused(edit(copy, intermediate_size=40), "gate_proj.weight is [48, 32] in it and [40, 32] in the model")


def test_an_embedding_of_another_vocabulary_is_given(copy: Path) -> None:
    refused(edit(copy, vocab_size=96), "embed_tokens.weight is [97, 32] in it and [96, 32] in the model")


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("vocab_size", 10**12, "weights"),
        ("num_hidden_layers", 10**9, "1000000000 layers"),
        ("hidden_size", 10**7, "weights"),
    ],
)
def test_a_model_too_large_for_its_weights_is_refused_before_memory_is_asked_for(
    copy: Path, key: str, value: int, part: str
) -> None:
    changed: dict[str, Any] = {key: value}
    refused(edit(copy, **changed), part)


def damage(kind: str, folder: Path) -> Path:
    """A folder, or a file, damaged in one way."""
    weights = folder / "model.safetensors"
    if kind == "cut":
        os.truncate(weights, weights.stat().st_size // 2)
    elif kind == "noise":
        weights.write_bytes(np.random.default_rng(0).bytes(5000))
    elif kind == "empty":
        weights.write_bytes(b"")
    elif kind == "header":
        weights.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    elif kind == "nested":
        weights.write_bytes(struct.pack("<Q", 100_000) + b"[" * 100_000)
    elif kind == "pickle":
        weights.unlink()
        torch.save({"x": Payload(folder / "RAN")}, folder / "pytorch_model.bin")
    elif kind == "tokenizer":
        (folder / "tokenizer.json").write_text('{"version": "1.0", "model": 3}')
    elif kind == "vocabulary":
        edit(folder, "tokenizer.json", model={"type": "BPE", "vocab": {"a": 0}, "merges": [["b", "c"]]})
    elif kind == "no weights":
        weights.unlink()
    else:
        text = {"not JSON": "{", "a list": "[]", "no type": "{}", "no text": "\udcff"}[kind]
        (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    return folder


KINDS = (
    "cut",
    "noise",
    "empty",
    "header",
    "nested",
    "pickle",
    "tokenizer",
    "vocabulary",
    "no weights",
    "not JSON",
    "a list",
    "no type",
    "no text",
)


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_one_message(kind: str, copy: Path) -> None:
    refused(damage(kind, copy))
    assert not (copy / "RAN").exists()


def test_weights_in_the_hubs_cache_are_looked_at_too(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--me--it"
    folder = Path(shutil.copytree(saved, repository / "snapshots/0a1b"))
    assert locate("me/it").weight_files == ()
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0a1b")
    file = folder / "model.safetensors"
    assert locate("me/it").weight_files == (file,)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ModelError, match=rf"{file} is damaged \(it ends after"):
        load("me/it")


def test_a_folder_without_a_tokenizer_says_so(copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    refused(copy, "holds no tokenizer", "copy these files")


@pytest.mark.parametrize("beside", [True, False])
def test_adapters_are_no_models(copy: Path, beside: bool) -> None:
    (copy / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base", "peft_type": "LORA"}))
    if not beside:
        (copy / "config.json").unlink()
    refused(copy, "holds an adapter of some/base", "merge it into its base model")


CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path({mark!r}).write_text("ran")
class OddConfig(LlamaConfig):
    model_type = "odd"
class OddModel(LlamaForCausalLM):
    config_class = OddConfig
class OddTokenizer(PreTrainedTokenizerFast):
    pass
"""


def with_code(folder: Path, *, of: str) -> Path:
    """A checkpoint whose ``of`` (model or tokenizer) is code of its own, which leaves RAN behind when it runs."""
    (folder / "odd.py").write_text(CODE.format(mark=str(folder / "RAN")))
    if of == "tokenizer":
        auto = {"AutoTokenizer": ["odd.OddTokenizer", None]}
        return edit(folder, "tokenizer_config.json", tokenizer_class="OddTokenizer", auto_map=auto)
    auto_map = {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddModel"}
    return edit(folder, model_type="odd", architectures=["OddModel"], auto_map=auto_map)


@pytest.mark.parametrize("of", ["tokenizer", "model"])
def test_code_in_a_checkpoint_is_refused_and_nobody_is_asked(
    copy: Path, of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(text: str = "") -> str:
        asked.append(text)
        return "y"

    monkeypatch.setattr(builtins, "input", answer)
    refused(with_code(copy, of=of), "[model] trust_remote_code = true")
    assert not asked
    assert not (copy / "RAN").exists()


@pytest.mark.parametrize("of", ["tokenizer", "model"])
def test_code_in_a_checkpoint_runs_when_it_is_trusted(
    copy: Path, of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    expected = load(str(copy))[0].state_dict()
    model, tokenizer = load(str(with_code(copy, of=of)), trust_remote_code=True)
    assert (copy / "RAN").exists()
    assert "Odd" in type(model if of == "model" else tokenizer).__name__
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_the_command_line_asks_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny.config(tmp_path)
    with_code(tmp_path / "model", of="tokenizer")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    assert main(["eval", str(config)]) == 2
    shown = capsys.readouterr()
    assert "trust_remote_code" in shown.err
    assert "[y/N]" not in shown.out + shown.err
    assert not (tmp_path / "model" / "RAN").exists()


def test_paths_in_a_configuration_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert absolute("models/mine", tmp_path) == str(tmp_path / "models" / "mine")
    assert absolute("./there", tmp_path) == str(tmp_path / "there")
    assert absolute("it.gguf", tmp_path) == str(tmp_path / "it.gguf")
    assert absolute("models/other", tmp_path) == "models/other"
    assert absolute("smollm2", tmp_path) == "smollm2"
    assert absolute(str(tmp_path), Path("/nowhere")) == str(tmp_path)


@pytest.mark.parametrize("path", ["", "./none", "none.gguf", "/none", "a/b/c", "\0", "x" * 5000 + "/y/z"])
def test_paths_that_lead_nowhere_are_refused(path: str) -> None:
    with pytest.raises(ModelError, match=r"model\.path"):
        locate(path)


def test_a_language_model_is_taken_out_of_a_larger_one(tmp_path: Path) -> None:
    text = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    sizes = {"intermediate_size": 48, "intermediate_size_mlp": 48, "num_local_experts": 2, "pad_token_id": 0}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    seen = {
        "image_size": 28,
        "patch_size": 14,
        "projector_input_dim": 16,
        "projector_output_dim": 16,
        "vision_output_dim": 16,
    }
    whole = Llama4ForConditionalGeneration(Llama4Config(text_config=text | sizes, vision_config=vision | seen))
    whole.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    model, _ = load(str(tmp_path))
    assert type(model).__name__ == "Llama4ForCausalLM"
    held = load_file(tmp_path / "model.safetensors")
    assert torch.equal(model.lm_head.weight, held["language_model.lm_head.weight"])
    refused(
        rewrite(tmp_path, lambda t: t.update({"language_model.model.odd": torch.zeros(2)})), "language_model.model.odd"
    )
