"""Load a model and its tokenizer, exactly as the checkpoint has them, or say why not."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from logging import WARNING, Handler, LogRecord
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

from twinpass.errors import ModelError
from twinpass.model.gguf import quickly
from twinpass.model.headers import sizes_of
from twinpass.model.loaded import require_complete, unconverted
from twinpass.model.rotary import require_turned, take_over
from twinpass.model.source import Source, locate

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64, "float16": torch.float16}
"""The last for models that ``finetune`` was given so, as transformers loads a checkpoint of that kind."""

_AUTO = "AutoModelForCausalLM"
_SLACK = 1 << 20
_PACKED = 16
"""Weights that one element of a file can hold at the most."""


def load(
    path: str, dtype: str = "float32", *, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model on the CPU, in ``dtype``, and its tokenizer.

    Every weight of the model comes from the checkpoint, and every weight of the checkpoint is in the model, but for names that
    transformers or the model's other parts (vision, sound) are known to leave over. Python code in a checkpoint runs only
    if ``trust_remote_code``; nobody is ever asked.

    Raises:
        ModelError: it cannot be found or read, it is damaged or incomplete, or it is not a causal language model.
    """
    with quickly():
        return _load(path, dtype, trust_remote_code)


def _load(path: str, dtype: str, trust_remote_code: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    source = locate(path)
    arguments: dict[str, Any] = {**source.arguments, "trust_remote_code": trust_remote_code}
    held = {name: size for file in source.weight_files for name, size in sizes_of(file).items()}
    with _reading("configuration", path, source):
        config = AutoConfig.from_pretrained(**arguments)
        own_code = trust_remote_code and _AUTO in getattr(config, "auto_map", {})
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not own_code:
            raise ModelError(f"model.path: {path} is a {config.model_type} model without a causal language-model head")
        if source.gguf:
            take_over(config, source.weight_files[0], held)
        if held and not own_code:
            _require_likely(config, held, path)
    with _reading("weights", path, source):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **arguments,
            config=config,
            dtype=DTYPES[dtype],
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report
        )
        model, report = loaded
        require_complete(model, config, report, held if source.gguf else {}, path)
        if source.gguf:
            require_turned(model, source.weight_files[0])
            model = _plain(model, path)
    with _reading("tokenizer", path, source):
        tokenizer = AutoTokenizer.from_pretrained(**arguments)
        if not len(tokenizer):
            raise ModelError(f"model.path: the tokenizer of {path} has no tokens; its files are damaged or incomplete")
    return model, tokenizer


def load_like(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Another model of the same class and dtype, of which ``folder`` holds every weight.

    Raises:
        ModelError: it cannot be read, it is damaged or incomplete.
    """
    kind: Any = type(model)
    try:
        with _reading("weights", str(folder), locate(str(folder))):
            loaded: PreTrainedModel
            loaded, report = kind.from_pretrained(
                str(folder), dtype=model.dtype, output_loading_info=True, ignore_mismatched_sizes=True
            )
            require_complete(loaded, loaded.config, report, {}, str(folder))
    except ModelError as error:
        raise ModelError(str(error).removeprefix("model.path: ")) from error
    return loaded


@contextmanager
def _reading(part: str, path: str, source: Source) -> Iterator[None]:
    """Let a loader read a part of a checkpoint, without its progress bars and remarks; whatever it fails by is one message."""
    remarks: list[str] = []
    try:
        with quiet(remarks):
            yield
    except ModelError:
        raise
    except BaseException as error:
        if (
            not isinstance(error, Exception) and type(error).__name__ != "PanicException"
        ):  # Rust's panics are no Exceptions
            raise
        where = path if Path(source.folder).is_dir() else f"there is no folder {path}, and as a hub id it"
        raise ModelError(f"model.path: {where} cannot be loaded: {_reason(error, part, remarks)}") from error


def _require_likely(config: PreTrainedConfig, held: Mapping[str, int], path: str) -> None:
    """Refuse a configuration of a far larger model than the weights are of, before memory for it is asked for."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if not isinstance(layers, int) or layers > len(held):
        raise ModelError(
            f"model.path: config.json of {path} says {layers} layers, and there are {len(held)} tensors in all"
        )
    make: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = make.from_config(config)
    needed = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if needed > _PACKED * sum(held.values()) + _SLACK:
        raise ModelError(
            f"model.path: config.json of {path} describes a model of {needed:,} weights, and its files hold {sum(held.values()):,}; "
            "one of them is damaged, or of another model"
        )


def _reason(error: BaseException, part: str, remarks: Sequence[str]) -> str:
    """One line for any failure of a loader."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text or "custom code" in text:
        return (
            "it comes with Python code of its own, which is never run unasked; read that code, and set [model] trust_remote_code = true "
            "if you trust it"
        )
    if isinstance(error, UnpicklingError):
        return "its weights are pickled together with more than tensors, and such files can run code; get them as safetensors"
    if names := unconverted(remarks):
        return f"its tensors do not fit together for this model: {names}; the checkpoint is damaged or incomplete"
    return f"its {part}: {text[:300]} ({type(error).__name__})" if text else f"its {part}: {type(error).__name__}"


@contextmanager
def quiet(remarks: list[str]) -> Iterator[None]:
    """Keep the loader's own progress bars and remarks off the terminal, and what it warns of in ``remarks``."""
    verbosity, logger, keeper = logging.get_verbosity(), logging.get_logger("transformers"), _Keeper(remarks)
    handlers, propagated = logger.handlers[:], logger.propagate
    logger.handlers[:], logger.propagate = [keeper], False
    logging.set_verbosity(WARNING)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        logger.handlers[:], logger.propagate = handlers, propagated


class _Keeper(Handler):
    def __init__(self, kept: list[str]) -> None:
        super().__init__()
        self._kept = kept

    def emit(self, record: LogRecord) -> None:
        self._kept.append(record.getMessage())


def _plain(model: PreTrainedModel, path: str) -> PreTrainedModel:
    """The same weights without the GGUF label, which would forbid ``save_pretrained``."""
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        fresh: PreTrainedModel = type(model)(config)
    buffers = dict(model.named_buffers())
    fresh.load_state_dict(model.state_dict(), assign=True)
    for name, _ in list(fresh.named_buffers()):
        owner, _, local = name.rpartition(".")
        fresh.get_submodule(owner)._buffers[local] = buffers[name]
    fresh.tie_weights()
    fresh.name_or_path = path
    return fresh
