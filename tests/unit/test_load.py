"""A checkpoint loads exactly as it is, or is refused in one line that names what is wrong; its code runs only when trusted."""

import builtins
import io
import json
import math
import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Llama4Config, Llama4ForConditionalGeneration, dynamic_module_utils

from twinpass.cli.main import main
from twinpass.errors import ModelError
from twinpass.model.gguf import quickly
from twinpass.model.load import load
from twinpass.model.rotary import require_turned
from twinpass.model.source import absolute, locate

Change = Callable[[dict[str, Tensor]], None]


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


def refused(folder: Path, *parts: str) -> str:
    """The message, which is one line and holds ``parts``."""
    with pytest.raises(ModelError) as caught:
        load(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    for part in parts:
        assert part in message, message
    return message


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


def gguf_of(
    folder: Path, target: Path, change: Change = lambda tensors: None, says: Callable[[Any], None] = lambda writer: None
) -> Path:
    """The untied model of ``folder`` as a GGUF file; ``change`` edits its tensors first, and it ``says`` more."""
    writer = gguf.GGUFWriter(str(target), "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(97)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "ab", *(f"t{i}" for i in range(3, 97))])
    writer.add_token_types([1] * 97)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    says(writer)
    tensors = {
        GGUF[name.replace(".0.", ".N.").replace(".1.", ".N.")].replace(
            "N", name.split(".")[2] if "layers" in name else ""
        ): t
        for name, t in load_file(folder / "model.safetensors").items()
        if not name.endswith("bias")
    }
    change(tensors)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


GGUF = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "model.layers.N.input_layernorm.weight": "blk.N.attn_norm.weight",
    "model.layers.N.post_attention_layernorm.weight": "blk.N.ffn_norm.weight",
    "model.layers.N.self_attn.q_proj.weight": "blk.N.attn_q.weight",
    "model.layers.N.self_attn.k_proj.weight": "blk.N.attn_k.weight",
    "model.layers.N.self_attn.v_proj.weight": "blk.N.attn_v.weight",
    "model.layers.N.self_attn.o_proj.weight": "blk.N.attn_output.weight",
    "model.layers.N.mlp.gate_proj.weight": "blk.N.ffn_gate.weight",
    "model.layers.N.mlp.up_proj.weight": "blk.N.ffn_up.weight",
    "model.layers.N.mlp.down_proj.weight": "blk.N.ffn_down.weight",
}


def said(**values: Any) -> Callable[[Any], None]:
    """What a file says of its rotation, whoever wrote it."""

    def tell(writer: Any) -> None:
        for key, value in values.items():
            name = f"llama.rope.{key.replace('__', '.')}"
            add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
            add(name, value)

    return tell


def table(values: torch.Tensor) -> Change:
    return lambda tensors: tensors.update({"rope_freqs.weight": values.float()})


@pytest.mark.parametrize(
    ("says", "change", "base", "divided"),
    [
        (said(), table(torch.ones(4)), 1e4, torch.ones(4)),
        (said(freq_base=500.0, dimension_count=8), table(torch.ones(4)), 500.0, torch.ones(4)),
        (said(freq_base=500.0, scaling__type="none"), table(torch.ones(4)), 500.0, torch.ones(4)),
        (said(freq_base=500.0, scaling__type="linear", scaling__factor=4.0), None, 500.0, torch.full((4,), 4.0)),
        (said(scale_linear=2.0), None, 1e4, torch.full((4,), 2.0)),
        (said(freq_base=3e4), table(torch.ones(4)), 3e4, torch.ones(4)),
    ],
)
def test_positions_turn_as_a_gguf_file_says(
    untied: Path, tmp_path: Path, says: Callable[[Any], None], change: Change | None, base: float, divided: torch.Tensor
) -> None:
    model, _ = load(str(gguf_of(untied, tmp_path / "it.gguf", change or (lambda tensors: None), says)))
    expected = base ** -(torch.arange(4) / 4) / divided
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, expected)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(again.model.rotary_emb.inv_freq, expected)


def test_llama_3s_table_of_frequencies_is_its_rule(untied: Path, tmp_path: Path) -> None:
    long = 5e5 ** -(torch.arange(4) / 4)
    waves = 2 * math.pi / long
    share = ((8192 / waves - 1) / 3).clamp(0, 1)
    divided = 1 / ((1 - share) / 8 + share)
    assert 1 < divided.max() <= 8
    file = gguf_of(untied, tmp_path / "it.gguf", table(divided), said(freq_base=5e5))
    model, _ = load(str(file))
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, long / divided, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("says", "change", "part"),
    [
        (said(), table(torch.tensor([1.0, 1.0, 3.0, 9.0])), "not Llama 3's"),
        (said(scaling__type="longrope", scaling__factor=4.0), None, "scaled by 'longrope'"),
        (said(scaling__type="yarn", scaling__factor=4.0), None, "does not say"),
    ],
)
def test_positions_that_cannot_be_taken_over(
    untied: Path, tmp_path: Path, says: Callable[[Any], None], change: Change | None, part: str
) -> None:
    file = gguf_of(untied, tmp_path / "it.gguf", change or (lambda tensors: None), says)
    with pytest.raises(ModelError, match=part) as caught:
        load(str(file))
    assert "get the model as safetensors" in str(caught.value)


def test_a_model_that_turns_more_than_the_file_says(untied: Path, tmp_path: Path) -> None:
    model, _ = load(str(untied))
    require_turned(model, gguf_of(untied, tmp_path / "same.gguf", says=said(dimension_count=8)))
    with pytest.raises(ModelError, match="turn 4 numbers of a head, and in the model 8"):
        require_turned(model, gguf_of(untied, tmp_path / "less.gguf", says=said(dimension_count=4)))


def test_yarn_is_taken_over(untied: Path, tmp_path: Path) -> None:
    says = said(scaling__type="yarn", scaling__factor=4.0, scaling__original_context_length=16)
    model, _ = load(str(gguf_of(untied, tmp_path / "it.gguf", says=says)))
    assert model.config.rope_parameters == {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    assert model.model.rotary_emb.attention_scaling == pytest.approx(1 + 0.1 * math.log(4))


def test_a_gguf_file_loads_and_can_be_saved(untied: Path, tmp_path: Path) -> None:
    model, tokenizer = load(str(gguf_of(untied, tmp_path / "it.gguf")))
    assert tokenizer("b")["input_ids"] == [1]
    held = load_file(untied / "model.safetensors")
    for name in ("lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"):
        assert torch.equal(model.state_dict()[name], held[name])
    model.save_pretrained(tmp_path / "saved")
    assert len(load_file(tmp_path / "saved" / "model.safetensors")) == len(held) - 14  # its biases


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda t: t.__delitem__("blk.1.ffn_up.weight"), "model.layers.1.mlp.up_proj.weight is not in it"),
        (lambda t: t.update({"blk.2.ffn_up.weight": torch.zeros(48, 32)}), "blk.2.ffn_up.weight is in it"),
        (lambda t: t.update({"blk.1.odd.weight": torch.zeros(7)}), "7 weights are in it that have no place"),
        (
            lambda t: t.update({"blk.0.ffn_up.weight": torch.zeros(40, 32)}),
            "is [40, 32] in it and [48, 32] in the model",
        ),
        (lambda t: t.update({"rope_freqs.weight": torch.ones(4)}), None),
    ],
)
def test_gguf_files_are_complete_or_refused(untied: Path, tmp_path: Path, change: Change, part: str | None) -> None:
    file = gguf_of(untied, tmp_path / "it.gguf", change)
    if part:
        refused(file, part)
    else:
        load(str(file))


@pytest.mark.parametrize("length", [0, 4, 23, 24, 200, 2000, -1, -2000])
def test_gguf_files_that_end_early_are_refused(untied: Path, tmp_path: Path, length: int) -> None:
    file = gguf_of(untied, tmp_path / "it.gguf")
    data = file.read_bytes()
    file.write_bytes(data[:length])
    refused(file)


@pytest.mark.parametrize(("at", "value"), [(8, 1 << 60), (16, 1 << 60), (4, 9), (24, 1 << 63)])
def test_gguf_files_whose_counts_are_wrong_are_refused_at_once(
    untied: Path, tmp_path: Path, at: int, value: int
) -> None:
    file = gguf_of(untied, tmp_path / "it.gguf")
    data = bytearray(file.read_bytes())
    struct.pack_into("<I" if at == 4 else "<Q", data, at, value)
    file.write_bytes(data)
    refused(file, "is damaged")


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


def test_a_gguf_header_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import modeling_gguf_pytorch_utils

    gguf: Any = modeling_gguf_pytorch_utils

    asked: list[tuple[Any, bool]] = []

    def parse(path: Any, return_tensors: bool = False, **more: Any) -> dict[str, Any]:
        asked.append((path, return_tensors))
        return {"config": {"path": str(path)}}

    monkeypatch.setattr(gguf, "load_gguf_checkpoint", parse)
    with quickly():
        first, again, other = (gguf.load_gguf_checkpoint(path, return_tensors=False) for path in ("a", "a", "b"))
        first["config"]["path"] = "changed"
        assert (again["config"]["path"], other["config"]["path"]) == ("a", "b")
        assert gguf.load_gguf_checkpoint("a")["config"]["path"] == "a"
        gguf.load_gguf_checkpoint("a", return_tensors=True)
        gguf.load_gguf_checkpoint("a", return_tensors=True)
    assert asked == [("a", False), ("b", False), ("a", True), ("a", True)]
    assert gguf.load_gguf_checkpoint is parse


def test_a_gguf_file_says_the_same_when_it_is_read_quickly(tmp_path: Path) -> None:
    reader = pytest.importorskip("gguf.gguf_reader", reason="needs the package gguf")
    import gguf

    file = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "bé", ""])
    writer.add_block_count(2)
    writer.add_tensor("blk.0.attn_q.weight", np.arange(32, dtype=np.float32).reshape(4, 8))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    asked = gguf.MODEL_ARCH.LLAMA, 2
    slow = reader.GGUFReader(file)
    slow_map, numpy = gguf.get_tensor_name_map(*asked).mapping, reader.np
    with quickly():
        quick = reader.GGUFReader(file)
        assert gguf.get_tensor_name_map(*asked) is gguf.get_tensor_name_map(*asked)
        assert gguf.get_tensor_name_map(*asked).mapping == slow_map
    assert reader.np is numpy
    assert gguf.get_tensor_name_map(*asked) is not gguf.get_tensor_name_map(*asked)
    assert {name: field.contents() for name, field in quick.fields.items()} == {
        name: field.contents() for name, field in slow.fields.items()
    }
    assert quick.fields["tokenizer.ggml.tokens"].contents() == ["a", "bé", ""]
    np.testing.assert_array_equal(quick.tensors[0].data, slow.tensors[0].data)
