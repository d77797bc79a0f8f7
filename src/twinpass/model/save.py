"""What was trained, as a folder that transformers, PEFT and twinpass load again."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from twinpass.errors import ModelError, system_error

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_model(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None", folder: Path) -> None:
    """Write weights, configuration, generation configuration and tokenizer, so that ``model.path`` can name ``folder``.

    Raises:
        ModelError, or what the system refuses (see :func:`new`): nothing is left in ``folder`` then but what was there before.
    """
    with new(folder) as part, without_progress():
        model.save_pretrained(part, state_dict=_apart(model))
        if tokenizer is not None:
            tokenizer.save_pretrained(part)


@contextmanager
def new(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder``, which takes its place once it is written.

    Raises:
        ModelError: it cannot be written; what the system refuses is for the caller, who knows the folder that a user has named.
    """
    part = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    except Exception as error:
        if system_error(error) is not None:
            raise
        raise ModelError(
            f"{folder}: what was trained cannot be written: {' '.join(str(error).split())[:300]} ({type(error).__name__}); mend that, "
            "and rebuild it from the journal with 'twinpass replay RUN'"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _apart(model: "PreTrainedModel") -> "dict[str, Tensor]":
    """The model's tensors by name. One that stands under two names is written twice, unless the architecture ties these names."""
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    state: dict[str, Tensor] = model.state_dict()
    for name, tensor in state.items():
        known = tensor.untyped_storage().data_ptr() in seen
        tensors[name] = tensor.clone() if known and name not in tied else tensor
        seen.add(tensor.untyped_storage().data_ptr())
    return tensors


@contextmanager
def without_progress() -> Iterator[None]:
    """Inside the block transformers shows no bars of its own."""
    bars: Any = logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
