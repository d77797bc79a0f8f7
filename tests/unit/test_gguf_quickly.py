"""What makes GGUF files quick to read changes nothing of what is read, and leaves nothing behind."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import gguf_reader
from transformers import modeling_gguf_pytorch_utils

from twinpass.model.gguf import quickly

PARSER: Any = modeling_gguf_pytorch_utils


def test_a_gguf_header_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, bool]] = []

    def parse(path: Any, return_tensors: bool = False, **more: Any) -> dict[str, Any]:
        asked.append((path, return_tensors))
        return {"config": {"path": str(path)}}

    monkeypatch.setattr(PARSER, "load_gguf_checkpoint", parse)
    with quickly():
        first, again, other = (PARSER.load_gguf_checkpoint(path, return_tensors=False) for path in ("a", "a", "b"))
        first["config"]["path"] = "changed"
        assert (again["config"]["path"], other["config"]["path"]) == ("a", "b")
        assert PARSER.load_gguf_checkpoint("a")["config"]["path"] == "a"
        PARSER.load_gguf_checkpoint("a", return_tensors=True)
        PARSER.load_gguf_checkpoint("a", return_tensors=True)
    assert asked == [("a", False), ("b", False), ("a", True), ("a", True)]
    assert PARSER.load_gguf_checkpoint is parse


def test_a_gguf_file_says_the_same_when_it_is_read_quickly(tmp_path: Path) -> None:
    reader, parser = gguf_reader, PARSER
    file = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    said = {"texts": ["a", "bé", ""], "numbers": [1, 2, 70000], "scores": [0.5, -1.25], "flags": [True, False]}
    for name, values in said.items():
        writer.add_array(name, values)
    writer.add_array("nested", [[1, 2], [3, 4]])
    writer.add_block_count(2)
    writer.add_tensor("blk.0.attn_q.weight", np.arange(32, dtype=np.float32).reshape(4, 8))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    asked = gguf.MODEL_ARCH.LLAMA, 2
    slow = reader.GGUFReader(file)
    slow_map, numpy, value, parts = (
        gguf.get_tensor_name_map(*asked).mapping,
        reader.np,
        parser._gguf_parse_value,
        reader.GGUFReader._get_field_parts,
    )
    with quickly():
        quick = reader.GGUFReader(file)
        assert gguf.get_tensor_name_map(*asked) is gguf.get_tensor_name_map(*asked)
        assert gguf.get_tensor_name_map(*asked).mapping == slow_map
        read = {
            name: [parser._gguf_parse_value(field.parts[place], field.types) for place in field.data]
            for name, field in quick.fields.items()
            if name in said
        }
    assert read == said
    assert (reader.np, parser._gguf_parse_value, reader.GGUFReader._get_field_parts) == (numpy, value, parts)
    assert gguf.get_tensor_name_map(*asked) is not gguf.get_tensor_name_map(*asked)
    assert list(quick.fields) == list(slow.fields)
    for name, field in slow.fields.items():
        own = quick.fields[name]
        assert (own.offset, own.data, own.types, own.contents()) == (
            field.offset,
            field.data,
            field.types,
            field.contents(),
        )
        for part, other in zip(own.parts, field.parts, strict=True):
            assert part.dtype == other.dtype
            np.testing.assert_array_equal(part, other)
    np.testing.assert_array_equal(quick.tensors[0].data, slow.tensors[0].data)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16"])
@pytest.mark.parametrize("rows", [1, 16, 3000])
def test_packed_weights_are_the_same_when_they_are_unpacked_quickly(kind: str, rows: int) -> None:
    packed = gguf.quantize(
        np.random.default_rng(0).standard_normal((rows, 96), np.float32), gguf.GGMLQuantizationType[kind]
    )
    slow = gguf.dequantize(packed, gguf.GGMLQuantizationType[kind])
    with quickly():
        np.testing.assert_array_equal(gguf.dequantize(packed, gguf.GGMLQuantizationType[kind]), slow)


def test_a_version_without_such_functions_is_read_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(gguf_reader.GGUFReader, "_get_field_parts")
    with quickly():
        assert not hasattr(gguf_reader.GGUFReader, "_get_field_parts")
    assert not hasattr(gguf_reader.GGUFReader, "_get_field_parts")
