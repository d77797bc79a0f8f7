"""Reads GGUF files by transformers, without what makes it slow: a header parsed three times, and element by element.

What is read is the same.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from struct import Struct
from typing import Any

import numpy as np
from transformers import modeling_gguf_pytorch_utils

_PARSER: Any = modeling_gguf_pytorch_utils
_LENGTH = Struct("<Q")
_STRING, _ARRAY = 8, 9
"""GGUF's types of a text and of an array."""
_GROUP = 1 << 18
"""Bytes that are made into numbers at a time: some thousand calls for a model instead of ten times as many."""


@contextmanager
def quickly() -> Iterator[None]:
    """Inside the block loaders of transformers read GGUF files so."""
    with ExitStack() as stack:
        stack.enter_context(_parsed_once())
        stack.enter_context(_quicker(_PARSER, "_gguf_parse_value", _texts_whole))
        with suppress(ImportError):  # newer versions of transformers read a header by this one, too
            reader = import_module("transformers.integrations.gguf.reader")
            stack.enter_context(_quicker(reader, "np", lambda before: _PlainArrays()))
        if find_spec("gguf") is not None:
            import gguf
            from gguf import gguf_reader, quants

            # Named anew for every module of the model, some 400 times.
            stack.enter_context(_replaced(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)))
            # The header is read once more for the weights.
            stack.enter_context(_replaced(gguf, "GGUFReader", cache(gguf.GGUFReader)))
            stack.enter_context(_replaced(gguf_reader, "np", _PlainArrays()))
            stack.enter_context(_quicker(gguf_reader.GGUFReader, "_get_field_parts", _whole_arrays))
            stack.enter_context(_quicker(quants, "_apply_over_grouped_rows", lambda before: _by_large_groups))
        yield


class _PlainArrays:
    """NumPy whose mapped files are plain arrays: slices of these cost a third, and a vocabulary has 100,000 strings."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def memmap(self, *args: Any, **options: Any) -> Any:
        return np.asarray(np.memmap(*args, **options))


def _whole_arrays(part_by_part: Callable[..., Any]) -> Callable[..., Any]:
    """``GGUFReader._get_field_parts`` with a loop for all texts of an array, and one view for all its numbers."""
    from gguf import GGUFValueType

    def parts(reader: Any, at: int, kind: int) -> Any:
        if kind != _ARRAY or reader.byte_order != "I":
            return part_by_part(reader, at, kind)
        head = [reader._get(at, np.uint32), reader._get(at + 4, np.uint64)]
        (inner,), (count,) = (own.tolist() for own in head)
        number = reader.gguf_scalar_to_np.get(inner)
        if not count or (number is None and inner != _STRING):
            return part_by_part(reader, at, kind)
        begin = at + 12
        if number is None:
            found, end, step = _texts(reader.data, begin, count), begin, 2
            end += sum(own.nbytes for own in found)
        else:
            whole = reader._get(begin, number, count)
            found, end, step = [whole[one : one + 1] for one in range(count)], begin + whole.nbytes, 1
        places = list(range(len(head) + step - 1, len(head) + len(found), step))
        return end - at, head + found, places, [GGUFValueType(_ARRAY), GGUFValueType(inner)]

    return parts


def _texts(data: Any, at: int, count: int) -> list[Any]:
    """For each text its length, as an array of one number, and its bytes."""
    found: list[Any] = []
    for _ in range(count):
        start = at + 8
        end = start + _LENGTH.unpack_from(data, at)[0]
        found.append(data[at:start].view(np.uint64))
        found.append(data[start:end])
        at = end
    return found


def _texts_whole(element_by_element: Callable[..., Any]) -> Callable[..., Any]:
    """Transformers' ``_gguf_parse_value``, which makes a list of each text's bytes first."""

    def value(own: Any, kinds: Any) -> Any:
        if isinstance(kinds, list) and kinds and kinds[-1] == _STRING:
            return own.tobytes().decode()
        return element_by_element(own, kinds)

    return value


def _by_large_groups(func: Callable[[Any], Any], arr: Any, otype: Any, oshape: tuple[int, ...]) -> Any:
    """``gguf.quants._apply_over_grouped_rows``, which takes 16 rows at a time however short they are."""
    rows = arr.reshape(-1, arr.shape[-1])
    out = np.empty(oshape, otype)
    made = out.reshape(len(rows), -1)
    step = max(16, _GROUP // max(1, rows[:1].nbytes))
    for start in range(0, len(rows), step):
        own = rows[start : start + step]
        made[start : start + step] = func(own).reshape(len(own), -1)
    return out


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Transformers parses the header anew for the configuration, the tokenizer and in between."""
    parse, known = _PARSER.load_gguf_checkpoint, dict[str, Mapping[str, Any]]()

    def remembered(path: Any, return_tensors: bool = False, **more: Any) -> Any:
        if return_tensors or more:
            return parse(path, return_tensors=return_tensors, **more)
        if str(path) not in known:
            known[str(path)] = parse(path, return_tensors=False)
        return _copied(known[str(path)])

    with _replaced(_PARSER, "load_gguf_checkpoint", remembered):
        yield


def _copied(said: Any) -> Any:
    """A copy of what a header says: dictionaries, and lists of numbers and texts."""
    if isinstance(said, dict):
        return {key: _copied(value) for key, value in said.items()}
    return said.copy() if isinstance(said, list) else said


@contextmanager
def _quicker(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Inside the block ``owner.name`` is what ``make`` makes of it; a version that has none is as quick as it is."""
    if not hasattr(owner, name):
        yield
        return
    with _replaced(owner, name, make(getattr(owner, name))):
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside the block ``owner.name`` is ``value``."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
