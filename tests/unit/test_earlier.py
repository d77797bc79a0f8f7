"""Configurations as earlier versions wrote them into run folders, word for word, and what is read of them now."""

import tomllib
from typing import Any

import pytest

from twinpass.train.earlier import current

OF_A_FILE = """
[model]
path = "/models/llama"

[trainable]
kind = "full"

[estimator]
kind = "spsa"
probes = 2
noise = "rademacher"
perturbation = "inplace"

[engine]
kind = "torch"
device = "cpu"

[run]
out = "/runs/a"
seed = 3
"""
"""What ``twinpass train`` wrote, but for sections that are the same."""

OF_PYTHON = """
[finetune]
model = ""
dtype = "float32"
invocation = []

[trainable]
kind = "Full"

[estimator]
kind = "Spsa"
probes = 1
noise = "binomial"
perturbation = "tandem"

[reuse]
policy = "Auto"
budget = 1073741824
page_size = 1
"""
"""What ``finetune`` wrote."""


def test_noise_and_perturbation_are_the_engines() -> None:
    before = tomllib.loads(OF_A_FILE)
    now = current(before)
    assert now["estimator"] == {"kind": "spsa", "probes": 2}
    assert now["engine"] == {"kind": "torch", "device": "cpu", "noise": "rademacher", "perturbation": "inplace"}
    assert {key: value for key, value in now.items() if key not in ("estimator", "engine")} == {
        key: value for key, value in before.items() if key not in ("estimator", "engine")
    }
    assert before == tomllib.loads(OF_A_FILE), "what was read stays as it is"
    assert current(now) == now


def test_where_there_was_no_engine_there_is_one() -> None:
    now = current(tomllib.loads(OF_PYTHON))
    assert now["estimator"] == {"kind": "Spsa", "probes": 1}
    assert now["engine"] == {"noise": "binomial", "perturbation": "tandem"}


@pytest.mark.parametrize(
    "damaged",
    [{}, {"estimator": 3}, {"estimator": {"noise": "gaussian"}, "engine": "torch"}, {"engine": {"noise": "gaussian"}}],
    ids=str,
)
def test_what_is_damaged_stays_as_it_is(damaged: dict[str, Any]) -> None:
    assert current(damaged) == damaged
