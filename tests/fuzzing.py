"""Damage to what is read, drawn at random: as much of it as ``TWINPASS_FUZZ`` says (5,000 inputs), by ``TWINPASS_FUZZ_SEED``."""

import os
import random
import time
from collections import Counter
from collections.abc import Iterator

INPUTS = int(os.environ.get("TWINPASS_FUZZ", "5000"))
SEED = os.environ.get("TWINPASS_FUZZ_SEED", "")
SECONDS = 5.0
"""One input takes no longer."""

ODD = [
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"[" * 400,
    b"9" * 5000,
    b"1e999",
    b"nan",
    b"-0",
    b'"',
    b"\n",
    b"\r",
    b"\\u0000",
    b"{}",
    b"true",
    b"'''",
]


def damaged(data: bytes, chance: random.Random) -> bytes:
    """The same with some bytes changed, cut out, doubled, moved, or odd things put in."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        at = chance.randrange(len(changed) + 1)
        to = min(len(changed), at + chance.choice([1, 2, 8, 50]))
        match chance.randrange(6):
            case 0:
                changed[at:to] = bytes(chance.randrange(256) for _ in range(to - at))
            case 1:
                del changed[at:to]
            case 2:
                changed[at:at] = changed[at:to]
            case 3:
                changed[at:at] = chance.choice(ODD)
            case 4:
                changed[at:to] = chance.choice(ODD)
            case _:
                del changed[at:]
    return bytes(changed)


def each(share: float, seed: int, tally: Counter[str]) -> Iterator[random.Random]:
    """A source of chance for every input of a target, and a look at the clock."""
    for i in range(max(1, int(INPUTS * share))):
        began = time.monotonic()
        yield random.Random(f"{SEED}{seed} {i}")
        tally["inputs"] += 1
        assert time.monotonic() - began < SECONDS, f"input {i} took too long"
