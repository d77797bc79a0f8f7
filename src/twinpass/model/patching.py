"""Replace modules' forwards for a while, without touching their classes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn


@contextmanager
def forwards_of(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Inside the block each module runs its ``forward``; those that were set on instances before come back afterwards."""
    before = [(module, module.__dict__.get("forward")) for module in forwards]
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, own in before:
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own


def forward_of(module: nn.Module, forward: Callable[..., Any]) -> AbstractContextManager[None]:
    """The same for one module."""
    return forwards_of({module: forward})
