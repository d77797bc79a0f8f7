"""What a run has trained, read back from its folder; what is missing or damaged of it is refused by its file's name."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from twinpass.errors import ModelError, system_error
from twinpass.report.checksums import NAME, checksum, checksums
from twinpass.report.files import storing

SETUP, TENSORS = "adapter_config.json", "adapter_model.safetensors"
A, B = ".lora_A.weight", ".lora_B.weight"
PREFIX = "base_model.model."


def require_as_written(weights: Path, rebuilding: str) -> None:
    """Refuse a folder of which a file is another one than was written there; one without hashes, as older runs left it, is taken as it is.

    ``rebuilding`` is what writes it again, for messages.

    Raises:
        TwinpassError: naming the file.
    """
    sums = weights / NAME
    remedy = f"put back the folder from a copy, or write it again: {rebuilding}"
    with storing(sums, "read"):
        try:
            known = checksums(weights) or {}
        except ValueError as error:
            raise ModelError(f"{sums} is damaged: {error}; {remedy}") from error
    for name, expected in known.items():
        with storing(weights / name, "read"):
            found = checksum(weights / name)
        if found != expected:
            raise ModelError(
                f"{weights / name} is not what was written there, it is damaged or was changed: its SHA-256 begins with {found[:8]}, "
                f"and {NAME} beside it says {expected[:8]}; {remedy}. If you have changed it on purpose, remove {sums}, and the files "
                "are used as they are"
            )


def setup_of(weights: Path) -> Mapping[str, Any]:
    """What an adapter's configuration says.

    Raises:
        TwinpassError: it cannot be read.
    """
    with _reading(weights / SETUP):
        found = json.loads((weights / SETUP).read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not {"r", "lora_alpha", "target_modules"} <= found.keys():
            raise ValueError("it says no rank, alpha or modules")
    return found


def tensors_of(weights: Path) -> dict[str, Tensor]:
    """An adapter's A and B, by the names that they have in the model.

    Raises:
        TwinpassError: they cannot be read, or one is without the other.
    """
    with _reading(weights / TENSORS):
        found = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(weights / TENSORS).items()}
        known = {name.replace(A, B) for name in found if name.endswith(A)}
        if not found or known != {name for name in found if not name.endswith(A)}:
            raise ValueError("it does not hold an A and a B of every module")
    return found


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    with storing(path, "read"):
        path.open("rb").close()  # refused by the system, which says more than a library does
        try:
            yield
        except (ValueError, RecursionError, SafetensorError) as error:
            if system_error(error) is not None:
                raise
            raise ModelError(
                f"{path} is damaged: {error}; put it back from a copy, or rebuild it by twinpass replay"
            ) from error
