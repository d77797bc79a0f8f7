"""Damaged checkpoints: read, or refused in one line; never a traceback, never other weights than the file's.

``TWINPASS_FUZZ`` says how many (``make fuzz``: 100,000). Headers get two fifths of them; whole checkpoints go through transformers,
which takes some 50 ms each, and get one in fifty.
"""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import tiny
import torch
from fuzzing import INPUTS, SEED
from safetensors.torch import load_file, save

from twinpass.errors import ModelError
from twinpass.model.headers import facts_of, sizes_of
from twinpass.model.load import load

T = TypeVar("T")

VALUES = [None, True, -1, 0, 1, 3, 10**6, 10**18, 1.5, 1e308, "", "x", "\x00", [], {}, [1], {"a": 1}]


def damaged(data: bytes, chance: random.Random) -> bytes:
    """``data`` with some bytes changed, cut out, or put in, near its beginning mostly."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = min(len(found) - 1, int(chance.expovariate(1 / chance.choice((8, 64, 1024)))))
        kind = chance.randrange(4)
        if kind == 0:
            found[at] = chance.randrange(256)
        elif kind == 1:
            del found[at : at + chance.choice((1, 8, len(found)))]
        elif kind == 2:
            found[at:at] = chance.randbytes(chance.choice((1, 8, 64)))
        else:
            found[at : at + 8] = chance.choice((0, 1, 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little")
        if not found:
            break
    return bytes(found)


def accepted(read: Callable[[], T], path: Path) -> T | None:
    """What was read; None if it was refused, in one line that names the file."""
    try:
        return read()
    except ModelError as error:
        message = str(error)
    assert "\n" not in message
    assert str(path) in message
    return None


def gguf(chance: random.Random) -> bytes:
    """A small GGUF header with every kind of value."""

    def text(value: str) -> bytes:
        return len(value).to_bytes(8, "little") + value.encode()

    def number(value: int, width: int) -> bytes:
        return value.to_bytes(width, "little")

    entries = [
        text("general.architecture") + number(8, 4) + text("llama"),
        text("a") + number(4, 4) + number(7, 4),
        text("b") + number(9, 4) + number(8, 4) + number(2, 8) + text("t") + text("u"),
        text("c") + number(9, 4) + number(6, 4) + number(3, 8) + bytes(12),
    ]
    chance.shuffle(entries)
    tensor = text("w") + number(2, 4) + number(4, 8) + number(3, 8) + number(0, 4) + number(0, 8)
    return b"GGUF" + number(3, 4) + number(1, 8) + number(len(entries), 8) + b"".join(entries) + tensor + bytes(64)


@pytest.mark.parametrize("suffix", ["safetensors", "gguf"])
def test_headers(suffix: str, tmp_path: Path, tally: Counter[str]) -> None:
    chance, file = random.Random(f"{SEED}1"), tmp_path / f"it.{suffix}"
    sound = save({name: torch.ones(2, 3) for name in "abc"}, {"format": "pt"})
    read = 0
    for _ in range(INPUTS // 5):
        file.write_bytes(damaged(gguf(chance) if suffix == "gguf" else sound, chance))
        sizes = accepted(partial(sizes_of, file), file)
        if suffix == "gguf":
            accepted(partial(facts_of, file), file)
        read += sizes is not None
        tally["inputs"] += 1
        tally["refused"] += sizes is None
        assert all(size >= 0 for size in (sizes or {}).values())
    assert 0 < read < INPUTS // 5


def odd_value(folder: Path, file: str, chance: random.Random) -> None:
    """Give a key of a JSON file another value, or take it out."""
    values = json.loads((folder / file).read_text())
    inner = values
    while (
        nested := [key for key, value in inner.items() if isinstance(value, dict) and value]
    ) and chance.random() < 0.5:
        inner = inner[chance.choice(nested)]
    key = chance.choice(list(inner))
    if chance.random() < 0.2:
        del inner[key]
    else:
        inner[key] = chance.choice(VALUES)
    (folder / file).write_text(json.dumps(values))


def odd_bytes(folder: Path, file: str, chance: random.Random) -> None:
    """Damage a file."""
    (folder / file).write_bytes(damaged((folder / file).read_bytes(), chance))


CHANGES: list[tuple[Callable[[Path, str, random.Random], None], str]] = [
    (odd_value, "config.json"),
    (odd_value, "tokenizer.json"),
    (odd_value, "tokenizer_config.json"),
    (odd_value, "generation_config.json"),
    (odd_bytes, "config.json"),
    (odd_bytes, "tokenizer.json"),
    (odd_bytes, "model.safetensors"),
]


@pytest.mark.filterwarnings("ignore")
def test_whole_checkpoints(tmp_path: Path, tally: Counter[str]) -> None:
    chance, sound = random.Random(f"{SEED}2"), tiny.save(tmp_path / "sound", "llama-untied")
    weights = load_file(sound / "model.safetensors")
    for i in range(max(1, INPUTS // 50)):
        change, file = CHANGES[i % len(CHANGES)]
        folder = Path(shutil.copytree(sound, tmp_path / "odd", dirs_exist_ok=True))
        change(folder, file, chance)
        loaded = accepted(partial(load, str(folder)), folder)
        tally["inputs"] += 1
        tally["refused"] += loaded is None
        if loaded is not None and file != "model.safetensors":
            own = dict(loaded[0].named_parameters())
            assert all(torch.equal(own[name], tensor) for name, tensor in weights.items()), (i, file)
