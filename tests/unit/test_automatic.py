"""``"auto"`` in a file, and in Python: what it stands for, and what it cannot stand beside."""

import re
from pathlib import Path
from typing import Any

import pytest

from twinpass import AdamW, Normalised, OneSided, Relative, Sgd, Sign, Spsa
from twinpass.config.load import parse
from twinpass.config.schema import Config
from twinpass.errors import ConfigError

TASK = {"train": "a.jsonl", "prompt": "Review: {text}\n", "suffix": "Label:", "options": [" a", " b"]}
SPSA = {"estimator": {"kind": "spsa"}}
ACTIVATED = {"trainable": {"kind": "activated"}}
LAYERS = {"trainable": {"kind": "layers", "first": 1, "last": 2}}


def parsed(**sections: Any) -> Config:
    run = {"out": "run", **sections.pop("run", {})}
    return parse({"model": {"path": "m"}, "task": TASK, "run": run, **sections}, "it.toml", Path("/nowhere"))


@pytest.mark.parametrize(
    ("sections", "eval_every"),
    [({}, 8), ({**ACTIVATED, **SPSA}, 80), (LAYERS, 24), ({"trainable": {"kind": "full"}}, 8)],
)
def test_steps_stand_for_as_many_as_evaluations_gain_from(sections: dict[str, Any], eval_every: int) -> None:
    config = parsed(**sections, optimizer={"steps": "auto"})
    assert (config.optimizer.steps, config.optimizer.schedule) == (2000, "plateau")
    assert (config.run.patience, config.run.eval_every) == (2, eval_every)
    assert parsed(**sections, optimizer={"steps": "auto"}, run={"patience": 5}).run.patience == 5
    assert parsed(**sections, optimizer={"schedule": "plateau"}).optimizer == config.optimizer
    fixed = parsed(**sections)
    assert config.optimizer.lr == fixed.optimizer.lr
    assert fixed.optimizer.schedule == "linear"


def test_a_run_folder_s_file_says_what_is_in_force_and_is_read_as_the_same() -> None:
    config = parsed(optimizer={"steps": "auto", "lr": "auto"})
    again = parse(config.values, "config.toml", Path("/nowhere"))
    assert "auto" not in config.values["optimizer"].values()
    assert (again.optimizer, again.run) == (config.optimizer, config.run)


@pytest.mark.parametrize(
    ("sections", "kind", "lr"),
    [
        ({}, "AdamW", 4e-3),
        ({**ACTIVATED, **SPSA}, "Normalised", 1.0),
        (LAYERS, "Normalised", 1.0),
        ({**LAYERS, "estimator": {"kind": "line"}}, "Sgd", 1.0),
        ({"trainable": {"kind": "informed"}}, "Sgd", 1.0),
        ({"trainable": {"kind": "full"}}, "Relative", 2e-3),
    ],
)
def test_a_rate_stands_for_one_that_needs_no_search(sections: dict[str, Any], kind: str, lr: float) -> None:
    found = parsed(**sections, optimizer={"lr": "auto"}).optimizer
    assert (type(found).__name__, found.lr) == (kind, lr)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"optimizer": {"steps": "auto", "schedule": "linear"}}, "leaves open"),
        ({**LAYERS, "optimizer": {"kind": "sgd", "lr": "auto"}}, 'set kind = "normalised"'),
        ({"optimizer": {"steps": "auto"}, "run": {"eval_every": 0}}, "goes by evaluations"),
        ({"optimizer": {"schedule": "plateau"}, "run": {"patience": 0}}, "goes by evaluations"),
        ({**LAYERS, "optimizer": {"lr": "auto", "decay": 0.1}}, "leave decay out, or give lr a number"),
        ({**LAYERS, "optimizer": {"lr": "auto", "clip": 2.0}}, "leave clip out, or give lr a number"),
        ({"optimizer": {"steps": "many"}}, "[optimizer] steps"),
        ({"optimizer": {"lr": "Auto"}}, "[optimizer] lr"),
    ],
)
def test_what_it_cannot_stand_beside_is_refused(sections: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        parsed(**sections)


ALL_OF_THEM: Any = (AdamW, Normalised, Relative, Sgd, Sign)


@pytest.mark.parametrize("kind", ALL_OF_THEM)
def test_steps_stand_for_the_same_in_python(kind: Any) -> None:
    expected = kind(lr=1e-3, steps=2000, schedule="plateau")
    assert kind(lr=1e-3, schedule="plateau") == expected
    assert kind(1e-3, 7, schedule="plateau").steps == 7
    assert kind(lr=1e-3, steps="auto") == kind(1e-3, "auto") == kind(1e-3, steps="auto", schedule="plateau") == expected


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (AdamW, {"lr": "auto"}, r"AdamW: 1 problem in the configuration:\n  - lr: .* leave its optimizer out"),
        (Sgd, {"lr": "auto", "steps": 5}, r"Sgd: .*\n  - lr: .*Normalised\(\)"),
        (Sgd, {"lr": "auto", "steps": "auto", "schedule": "linear"}, r"- schedule: 'linear' .*leaves open.*\n  - lr: "),
        (AdamW, {"steps": "auto", "schedule": "cosine"}, "leaves open"),
        (Spsa, {"noise": "gaussian"}, r"Spsa: .*\n  - noise: .*finetune\(..., noise='gaussian'\)"),
        (OneSided, {"perturbation": "inplace"}, r"finetune\(..., perturbation='inplace'\)"),
    ],
)
def test_what_python_has_no_meaning_for_says_what_to_write(kind: Any, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        kind(**given)
