"""Configurations as earlier versions wrote them into run folders, word for word, and what is read of them now."""

import json
import tomllib
from dataclasses import asdict
from typing import Any

import pytest

from twinpass.reuse.debiased import Debiased
from twinpass.reuse.frozen import Frozen
from twinpass.reuse.invariant import Invariant
from twinpass.schedule.adaptive import AdaptiveEpsilon
from twinpass.schedule.epsilon import ConstantEpsilon, JoinedEpsilon
from twinpass.train.earlier import completed, current

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


def test_a_key_that_came_later_is_at_its_default() -> None:
    """At any depth, and in each of several."""
    policy = Debiased(inner=Frozen())
    epsilon = JoinedEpsilon((ConstantEpsilon(1e-3), AdaptiveEpsilon()), (5,))
    now = json.loads(json.dumps({"reuse": asdict(policy), "epsilon": asdict(epsilon)}))
    before = json.loads(json.dumps(now))
    del before["reuse"]["probability"], before["reuse"]["inner"]["budget"], before["epsilon"]["schedules"][1]["target"]
    assert completed(before, now, {"reuse": policy, "epsilon": epsilon}) == now
    assert completed(before, now, {}) == before


@pytest.mark.parametrize(
    ("before", "settings"),
    [
        ({"reuse": {}}, {"reuse": Invariant(keep="keys")}),
        ({"reuse": {"keep": "states", "budget": 2}}, {"reuse": Invariant()}),
        ({"reuse": {"unknown": 1}}, {"reuse": Invariant()}),
        ({"epsilon": {}}, {"epsilon": ConstantEpsilon(1e-3)}),
        ({}, {"reuse": Invariant()}),
    ],
    ids=["another value", "another value said", "a key that went", "no default", "no section"],
)
def test_what_differs_otherwise_still_differs(before: dict[str, Any], settings: dict[str, Any]) -> None:
    now = {name: asdict(each) for name, each in settings.items()}
    assert completed(before, now, settings) != now


@pytest.mark.parametrize(
    ("said", "now"),
    [
        (
            {"kind": "activated", "rank": 4},
            {"kind": "activated", "rank": 4, "targets": ("q_proj", "k_proj", "v_proj", "o_proj"), "first": 0},
        ),
        ({"kind": "activated", "targets": ["v_proj"]}, {"kind": "activated", "targets": ["v_proj"]}),
        ({"kind": "activated", "first": 3}, {"kind": "activated", "first": 3}),
        ({"kind": "lora"}, {"kind": "lora"}),
    ],
)
def test_adapters_stay_where_they_were_when_nothing_was_written_of_it(
    said: dict[str, Any], now: dict[str, Any]
) -> None:
    assert current({"trainable": said})["trainable"] == now
