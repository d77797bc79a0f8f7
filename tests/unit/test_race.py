"""Noise for sampling: compiled it is the definition, and it is Gumbel's."""

import numpy as np
import pytest
from scipy.stats import kstest

from twinpass.perturb.race import gumbel, reference


@pytest.mark.parametrize("size", [1, 4, 97, 1026])
def test_compiled_noise_is_the_definition(size: int) -> None:
    names = ["0/0/0", "3/1/2", "3/12/0"]
    found = gumbel(2**63 + 5, names, size)
    assert found.dtype == np.float32
    for row, name in zip(found, names, strict=True):
        assert np.array_equal(row, reference(2**63 + 5, name, size))


def test_noise_is_gumbels() -> None:
    noise = gumbel(7, [f"{i}/0/0" for i in range(20)], 10000)
    assert np.isfinite(noise).all()
    assert kstest(noise.ravel(), "gumbel_r").pvalue > 1e-3
    correlations = np.asarray(np.corrcoef(noise))
    assert np.abs(correlations[np.triu_indices(20, 1)]).max() < 0.045
