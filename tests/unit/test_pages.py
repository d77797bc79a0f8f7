"""Figures that a page of maths states are those of the code."""

import re
from pathlib import Path

import numpy as np
import torch

from twinpass.perturb.lattice import Lattice
from twinpass.perturb.noise import ALGORITHM, PER_BLOCK, reference
from twinpass.perturb.parameters import Parameters

MEZO = (Path(__file__).parents[2] / "docs" / "maths" / "mezo.md").read_text()


def stated(pattern: str) -> float:
    (number,) = re.findall(pattern, MEZO)
    return float(number)


def test_the_page_describes_the_noise_that_is_drawn() -> None:
    assert f"**Noise** (`{ALGORITHM}`)" in MEZO
    coins = stated(r"popcount of (\d+) bits")
    z = reference(7, "w", 0, 200_000, "binomial").astype(np.float64)
    grid = 1 / stated(r"a multiple of 1/(\d)\.\n")
    assert set(np.unique(z / grid) % 1) == {0.0}
    assert np.unique(np.abs(z[z != 0])).min() == grid
    assert np.abs(z).max() <= grid * coins / 2
    assert np.isclose((z**2).mean(), stated(r"variance (\d), kurtosis"), atol=0.02)
    assert stated(r"kurtosis ([\d.]+),") == 3 - 2 / coins
    assert np.isclose((z**4).mean() / (z**2).mean() ** 2, stated(r"kurtosis ([\d.]+),"), atol=0.04)
    words = {"eight": "binomial", "four": "gaussian", "128": "rademacher"}
    numbers = {"eight": 8, "four": 4, "128": 128}
    for word, distribution in words.items():
        assert re.search(rf"`{distribution}` takes {word} ", MEZO)
        assert PER_BLOCK[distribution] == numbers[word]  # type: ignore[index]


def test_the_page_describes_the_lattice() -> None:
    weights = torch.tensor([0.3, -1.7, 0.01])
    quantum = Lattice(Parameters({"w": weights}), "binomial").quantum["w"]
    assert quantum == 4.0 * 2.0 ** -stated(r"`q = range \* 2\^-(\d+)`")
