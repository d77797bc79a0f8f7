"""What weight files say of themselves, read without their weights: the names and sizes of tensors, numbers and texts beside them.

A loader takes a damaged header at its word: it may walk for hours, or ask for more memory than there is. So headers are looked at first, by
code that never believes a length that the file does not have.
"""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TypeVar

from twinpass.errors import ModelError

T = TypeVar("T")
Fact = int | float | str

_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""GGUF's types of numbers and booleans, as ``struct`` has them."""
_NUMBERS = {kind: struct.calcsize(f"<{form}") for kind, form in _FORMATS.items()}
"""The bytes that one of each takes."""
_LENGTH = struct.Struct("<Q")
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_DIMENSIONS = 4


def sizes_of(file: Path) -> Mapping[str, int]:
    """Elements of each tensor in a ``.safetensors`` or ``.gguf`` file, by the name that it has there.

    Raises:
        ModelError: the header is damaged.
    """
    return _read(file, _gguf if file.suffix == ".gguf" else _safetensors)


def facts_of(file: Path) -> Mapping[str, Fact]:
    """Numbers and texts that a GGUF file says about itself, by their keys; its arrays are left out.

    Raises:
        ModelError: the header is damaged.
    """
    return _read(file, _facts)


def _read(file: Path, entries: Callable[[mmap], Iterator[tuple[str, T]]]) -> dict[str, T]:
    try:
        if file.stat().st_size < 8:
            raise ValueError("it ends before its header does")
        with file.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as data:
            return dict(entries(data))
    except (ValueError, TypeError, KeyError, struct.error, RecursionError) as error:
        raise ModelError(
            f"model.path: {file} is damaged ({error or type(error).__name__}); fetch it again from its source"
        ) from error


def _safetensors(data: mmap) -> Iterator[tuple[str, int]]:
    (length,) = struct.unpack_from("<Q", data)
    if length > len(data) - 8:
        raise ValueError(f"a header of {length} bytes in a file of {len(data)}")
    header = json.loads(data[8 : 8 + length])
    last = 0
    for name, entry in header.items():
        if name != "__metadata__":
            first, end = entry["data_offsets"]
            last = max(last, end)
            yield name, prod(entry["shape"])
            if not 0 <= first <= end:
                raise ValueError(f"{name} has no place in it")
    if 8 + length + last > len(data):
        raise ValueError(f"it ends after {len(data)} bytes of {8 + length + last}")


def _facts(data: mmap) -> Iterator[tuple[str, Fact]]:
    _, entries, at = _counts(data)
    for _ in range(entries):
        key, at = _string(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        if kind in _FORMATS:
            yield key, struct.unpack_from(f"<{_FORMATS[kind]}", data, at + 4)[0]
        elif kind == _STRING:
            yield key, _string(data, at + 4)[0]
        at = _after_value(data, at)


def _counts(data: mmap) -> tuple[int, int, int]:
    """How many tensors and how many entries there are, and where these begin."""
    if data[:4] != b"GGUF":
        raise ValueError("it does not begin like a GGUF file")
    version, tensors, entries = struct.unpack_from("<IQQ", data, 4)
    if version not in _VERSIONS:
        raise ValueError(f"GGUF version {version}, where 2 and 3 are known")
    return tensors, entries, 24


def _gguf(data: mmap) -> Iterator[tuple[str, int]]:
    tensors, entries, at = _counts(data)
    for _ in range(entries):
        _, at = _string(data, at)
        at = _after_value(data, at)
    for _ in range(tensors):
        name, at = _string(data, at)
        (dimensions,) = struct.unpack_from("<I", data, at)
        if dimensions > _DIMENSIONS:
            raise ValueError(f"{name} has {dimensions} dimensions")
        shape = struct.unpack_from(f"<{dimensions}Q", data, at + 4)
        at += 4 + 8 * dimensions + 12
        yield name, prod(shape)
    if at > len(data):
        raise ValueError("it ends before its header does")


def _after_value(data: mmap, at: int) -> int:
    (kind,) = struct.unpack_from("<I", data, at)
    return _after(data, at + 4, kind)


def _after(data: mmap, at: int, kind: int) -> int:
    if kind in _NUMBERS:
        return at + _NUMBERS[kind]
    if kind == _STRING:
        return _skipped(data, at)
    if kind != _ARRAY:
        raise ValueError(f"a value of type {kind}, which is none")
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in _NUMBERS:
        return _within(data, at + count * _NUMBERS[inner])
    if inner != _STRING:
        raise ValueError(f"an array of type {inner}")
    length, size = _LENGTH.unpack_from, len(data)
    for _ in range(count):  # a vocabulary has 50,000
        at += 8 + length(data, at)[0]
        if at > size:
            break
    return _within(data, at)


def _skipped(data: mmap, at: int) -> int:
    (length,) = struct.unpack_from("<Q", data, at)
    return _within(data, at + 8 + int(length))


def _string(data: mmap, at: int) -> tuple[str, int]:
    end = _skipped(data, at)
    return data[at + 8 : end].decode("utf-8"), end


def _within(data: mmap, at: int) -> int:
    if at > len(data):
        raise ValueError("it ends before its header does")
    return at
