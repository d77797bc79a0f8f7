"""Runs that are begun, cut short and looked at."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from twinpass.cli.main import main
from twinpass.train.journal import read

ENDED = (0, 3)
"""Codes of a run that went through; tiny random models may well learn nothing."""


def train(config: Path, *more: str) -> int:
    return main(["train", str(config), "--json", *more])


def cut(run: Path, lines: int) -> bytes:
    """Let a finished run be one that was killed early; what its journal held before."""
    journal = run / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(b"".join(whole.splitlines(keepends=True)[:lines]))
    return whole


def kinds(run: Path) -> list[str]:
    return [record["kind"] for record in read(run / "journal.jsonl").records]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = [path for name in ("adapter", "model") for path in folder.glob(f"{name}/*.safetensors")]
    return load_file(file)
