"""Reads GGUF files by transformers, without what makes it slow: a header parsed three times, and element by element.

What is read is the same.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from transformers import modeling_gguf_pytorch_utils


@contextmanager
def quickly() -> Iterator[None]:
    """Inside the block loaders of transformers read GGUF files so."""
    with ExitStack() as stack:
        stack.enter_context(_parsed_once())
        if find_spec("gguf") is not None:
            import gguf
            from gguf import gguf_reader

            # Named anew for every module of the model, some 400 times.
            stack.enter_context(_replaced(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)))
            # The header is read once more for the weights.
            stack.enter_context(_replaced(gguf, "GGUFReader", cache(gguf.GGUFReader)))
            stack.enter_context(_replaced(gguf_reader, "np", _PlainArrays()))
        yield


class _PlainArrays:
    """NumPy whose mapped files are plain arrays: slices of these cost a third, and a vocabulary has 100,000 strings."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def memmap(self, *args: Any, **options: Any) -> Any:
        return np.asarray(np.memmap(*args, **options))


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Transformers parses the header anew for the configuration, the tokenizer and in between."""
    module: Any = modeling_gguf_pytorch_utils
    parse, known = module.load_gguf_checkpoint, dict[str, Mapping[str, Any]]()

    def remembered(path: Any, return_tensors: bool = False, **more: Any) -> Any:
        if return_tensors or more:
            return parse(path, return_tensors=return_tensors, **more)
        if str(path) not in known:
            known[str(path)] = parse(path, return_tensors=False)
        return deepcopy(known[str(path)])

    with _replaced(module, "load_gguf_checkpoint", remembered):
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
