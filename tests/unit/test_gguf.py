"""GGUF files load exactly as they are, and turn positions as they say, or are refused."""

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import tiny
import torch
from checkpoints import Change, refused
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.models.gemma3.configuration_gemma3 import Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.gemma3n.configuration_gemma3n import Gemma3nTextConfig

import twinpass
from twinpass.errors import ModelError
from twinpass.model.load import load
from twinpass.model.rotary import require_turned, take_over


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("untied") / "model", "llama-untied")


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
    writer.add_token_list(["a", "b", "ab", "ba", *(f"t{i}" for i in range(4, 97))])
    writer.add_token_types([1] * 97)
    writer.add_token_merges(["a b", "b a"])  # transformers before 5.18 takes a list of one for what is in it
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
        (said(freq_base=math.nan), None, "a base of nan"),
        (said(freq_base=0.0), None, "a base of 0"),
        (said(scaling__type="linear", scaling__factor=-2.0), None, "a factor of -2"),
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


@pytest.mark.parametrize(
    ("facts", "whole", "local"),
    [
        ({"freq_base": 5e5}, 5e5 ** -(torch.arange(4) / 4), 1e4 ** -(torch.arange(4) / 4)),
        ({"freq_base": 2e4, "freq_base_swa": 300.0}, 2e4 ** -(torch.arange(4) / 4), 300.0 ** -(torch.arange(4) / 4)),
        (
            {"scaling.type": "linear", "scaling.factor": 8.0},
            1e4 ** -(torch.arange(4) / 4) / 8,
            1e4 ** -(torch.arange(4) / 4),
        ),
    ],
)
def test_local_layers_turn_by_a_base_of_their_own(
    tmp_path: Path, facts: dict[str, Any], whole: torch.Tensor, local: torch.Tensor
) -> None:
    file = tmp_path / "it.gguf"
    writer = gguf.GGUFWriter(str(file), "gemma3")
    for key, value in facts.items():
        (writer.add_string if isinstance(value, str) else writer.add_float32)(f"gemma3.rope.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    config = Gemma3TextConfig(hidden_size=32, num_attention_heads=4, head_dim=8)
    take_over(config, file, {})
    turns = Gemma3RotaryEmbedding(config)
    torch.testing.assert_close(turns.full_attention_inv_freq, whole)
    torch.testing.assert_close(turns.sliding_attention_inv_freq, local)
    writer = gguf.GGUFWriter(str(file), "gemma3")
    writer.add_float32("gemma3.rope.freq_base_swa", -1.0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match="a base of -1"):
        take_over(config, file, {})
    with pytest.raises(ModelError, match="are scaled"):
        take_over(config, file, {"rope_freqs.weight": 4})


def test_a_base_that_a_model_with_several_does_not_have(tmp_path: Path) -> None:
    file = tmp_path / "it.gguf"
    writer = gguf.GGUFWriter(str(file), "gemma3n")
    writer.add_float32("gemma3n.rope.freq_base", 5e5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    config = Gemma3nTextConfig()
    with pytest.raises(ModelError, match=r"a base of 500000, and in the model by \[1000"):
        take_over(config, file, {})
    assert config.rope_parameters is not None
    config.rope_parameters["full_attention"]["rope_theta"] = 5e5
    take_over(config, file, {})


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


def test_a_run_is_found_from_elsewhere(untied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(gguf_of(untied, tmp_path / "it.gguf").parent)
    rows = [{"text": "b", "label": 1}, {"text": "bb", "label": 0}]
    task: Any = {"prompt": "{text}", "options": ["ab", "b"], "trainable": twinpass.Lora(rank=2)}
    twinpass.finetune(*load("it.gguf"), rows, [], optimizer=twinpass.AdamW(steps=1), out=tmp_path / "run", **task)
    monkeypatch.chdir(tmp_path.parent)
    assert set(twinpass.load(tmp_path / "run").predict(rows)[0].probabilities) == {"ab", "b"}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda t: t.__delitem__("blk.1.ffn_up.weight"), "model.layers.1.mlp.up_proj.weight is not in it"),
        (lambda t: t.update({"blk.2.ffn_up.weight": torch.zeros(48, 32)}), "blk.2.ffn_up.weight is in it"),
        (lambda t: t.update({"blk.1.odd.weight": torch.zeros(7)}), "7 weights are in it that have no place"),
        (lambda t: t.update({"blk.0.ffn_up.weight": torch.zeros(40, 32)}), "model.layers.0.mlp.up_proj.weight"),
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


def test_a_gguf_file_is_read_once(untied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, reader = list[str](), gguf.GGUFReader

    def counted(path: Any, *mode: Any) -> Any:
        read.append(str(path))
        return reader(path, *mode)

    monkeypatch.setattr(gguf, "GGUFReader", counted)
    file = gguf_of(untied, tmp_path / "it.gguf")
    load(str(file))
    assert read == [str(file)]
    assert gguf.GGUFReader is counted, "and anew the next time: the file may be another"
