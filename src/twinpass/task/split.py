"""Rows held out by a seed."""

from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np

from twinpass.perturb.noise import derive_seed

T = TypeVar("T")


def split(rows: Sequence[T], strata: Sequence[Hashable], count: int, seed: int) -> tuple[list[T], list[T]]:
    """The rows that are left to train on, and ``count`` held out, both in their own order.

    Each stratum gives its share: exact shares are rounded down, and the largest remainders give one more.
    """
    order = np.random.Generator(np.random.Philox(derive_seed(seed, "held out"))).permutation(len(rows))
    members: dict[Hashable, list[int]] = {}
    for i in order:
        members.setdefault(strata[i], []).append(int(i))
    shares = {key: count * len(found) / len(rows) for key, found in members.items()}
    whole = {key: int(share) for key, share in shares.items()}
    ranked = sorted(members, key=lambda key: (whole[key] - shares[key], repr(key)))
    for key in ranked[: count - sum(whole.values())]:
        whole[key] += 1
    held = {i for key, found in members.items() for i in found[: whole[key]]}
    return [row for i, row in enumerate(rows) if i not in held], [row for i, row in enumerate(rows) if i in held]
