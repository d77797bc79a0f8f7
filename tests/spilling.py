"""Keys and values by their tokens, and files of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from twinpass.cache.pool import Pool
from twinpass.cache.spill import Spill
from twinpass.core import Tokens

LAYERS, HEADS, WIDTH, SLOTS = 2, 2, 4, 24
ROW_BYTES = 4 * LAYERS * 2 * HEADS * WIDTH
IDENTITY = {"base": "0123", "dtype": "torch.float32"}
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
FIRST, LONGER, OTHER = (1, 2, 3), (1, 2, 3, 4, 5), (7, 8)


def of_prefixes(tokens: Tokens, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random bits, NaN and all, that only depend on the tokens up to there: [layers, 2, n, heads, width]."""
    each = []
    for stop in range(1, len(tokens) + 1):
        generator = torch.Generator().manual_seed(hash(tokens[:stop]) % 2**32)
        shape, bits = (LAYERS, 2, HEADS, WIDTH), torch.iinfo(BITS[dtype])
        each.append(torch.randint(bits.min, bits.max, shape, generator=generator, dtype=BITS[dtype]))
    return torch.stack(each, 2).view(dtype)


def empty_pool(dtype: torch.dtype = torch.float32) -> Pool:
    pool, everywhere = Pool(SLOTS), torch.arange(SLOTS)
    for layer in range(LAYERS):
        pool.write(layer, everywhere, *torch.zeros(2, SLOTS, HEADS, WIDTH, dtype=dtype))
    return pool


def content(pool: Pool, slots: Sequence[int]) -> Tensor:
    """[layers, 2, n, heads, width]."""
    at = torch.tensor(slots, dtype=torch.long)
    return torch.stack([torch.stack(pool.read(layer, at)) for layer in range(LAYERS)])


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(BITS[one.dtype]), other.view(BITS[other.dtype]))


def store(spill: Spill, *sequences: tuple[Tokens, int], dtype: torch.dtype = torch.float32) -> None:
    """Write a file of the ends of these sequences, which lie in the pool's last slots, backwards."""
    new = torch.cat([of_prefixes(tokens, dtype)[:, :, start:] for tokens, start in sequences], 2)
    slots = np.arange(SLOTS - 1, SLOTS - 1 - new.shape[2], -1)
    pool = empty_pool(dtype)
    for layer in range(LAYERS):
        pool.write(layer, torch.from_numpy(slots), *new[layer])
    spill.store(sequences, slots, pool)


def stored(folder: Path, *sequences: tuple[Tokens, int]) -> Path:
    """Write a file; its path."""
    before = set(folder.iterdir())
    store(Spill(folder, IDENTITY, LAYERS), *sequences)
    (path,) = set(folder.iterdir()) - before
    return path


def fetch(
    spill: Spill, tokens: Tokens, wanted: Sequence[int] | None = None, dtype: torch.dtype = torch.float32
) -> list[int]:
    """What is found of ``tokens``: those slots have the right content, all others are as they were."""
    asked = list(range(len(tokens))) if wanted is None else list(wanted)
    pool, slots = empty_pool(dtype), np.arange(len(tokens))[::-1] + 3
    found: list[int] = spill.fetch(tokens, np.array(asked, np.int64), slots, pool).tolist()
    assert same_bits(content(pool, slots[found].tolist()), of_prefixes(tokens, dtype)[:, :, found])
    untouched = sorted(set(range(SLOTS)) - set(slots[found].tolist()))
    assert not content(pool, untouched).view(BITS[dtype]).any()
    return found


def reopened(folder: Path) -> Spill:
    return Spill(folder, IDENTITY, LAYERS)


def flip_last_byte(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
