"""Command line and ``finetune`` are one: what a configuration file may not combine, Python may not either."""

from collections.abc import Iterator, Mapping
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from twinpass import finetune
from twinpass.config.load import parse
from twinpass.config.schema import SECTIONS
from twinpass.errors import ConfigError

Keys = dict[str, Any]

CHOICES: Mapping[str, list[Keys]] = {
    "trainable": [
        {"kind": "lora"},
        {"kind": "lora", "first": 1},
        {"kind": "full"},
        {"kind": "pattern", "pattern": "mlp"},
        {"kind": "layers", "first": 1, "last": 2},
        {"kind": "layers", "first": 0, "last": 2, "block": 1},
        {"kind": "activated"},
        {"kind": "activated", "invocation": [1]},
    ],
    "estimator": [
        {"kind": "spsa"},
        {"kind": "spsa", "probes": 2},
        {"kind": "spsa", "perturbation": "inplace"},
        {"kind": "one_sided"},
        {"kind": "one_sided", "probes": 2, "perturbation": "inplace"},
        {"kind": "jvp"},
    ],
    "epsilon": [
        {"kind": "constant"},
        {"kind": "adaptive"},
        {"kind": "join", "schedules": [{"kind": "constant"}, {"kind": "adaptive"}], "boundaries": [3]},
    ],
    "reuse": [
        *({"policy": name} for name in SECTIONS["reuse"].kinds if name != "debiased"),
        *({"policy": "debiased", "inner": {"policy": name}} for name in ("reflected", "transported", "frozen")),
    ],
    "engine": [{}, {"compute_dtype": "bfloat16"}, {"compute_dtype": "float32"}],
    "task": [{"suffix": " Sentiment:"}, {}],
    "model": [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"dtype": "float64"}],
}
"""By section; the first of each is what the others are combined with."""


def combined() -> Iterator[dict[str, Keys]]:
    """Every combination in which up to three sections are not the first of their kind."""
    for sections in combinations(CHOICES, 3):
        for chosen in product(*(CHOICES[section] for section in sections)):
            yield {
                **{section: kinds[0] for section, kinds in CHOICES.items()},
                **dict(zip(sections, chosen, strict=True)),
            }


def refusal_of_the_file(chosen: Mapping[str, Keys]) -> tuple[str, ...]:
    """Its problems, none where it is valid."""
    task = {"train": "a.jsonl", "eval": "b.jsonl", "prompt": "{text}", "options": [" bad", " good"]}
    values = {
        **chosen,
        "task": {**task, **chosen["task"]},
        "model": {"path": "some/model", **chosen["model"]},
        "optimizer": {"lr": 1e-3, "steps": 2},
        "run": {"out": "runs/it"},
    }
    try:
        parse(values, "it.toml", Path("/nowhere"))
    except ConfigError as error:
        return error.problems
    return ()


def made(section: str, keys: Keys) -> Any:
    """The object that a section stands for."""
    family = SECTIONS[section]
    assert family.key is not None
    options = {key: value for key, value in keys.items() if key != family.key}
    if "inner" in options:
        options["inner"] = made(section, options["inner"])
    if "schedules" in options:
        options["schedules"] = tuple(made(section, each) for each in options["schedules"])
    return family.kinds[keys[family.key]](**options)


def test_what_a_file_refuses_finetune_refuses_in_the_same_words(tmp_path: Path) -> None:
    models = {name: tiny.model().to(getattr(torch, name)) for name in ("float32", "bfloat16", "float64")}
    tokenizer, refused = tiny.tokenizer(), 0
    for chosen in combined():
        if not (problems := refusal_of_the_file(chosen)):
            continue
        refused += 1
        with pytest.raises(ConfigError) as caught:
            finetune(
                models[chosen["model"]["dtype"]],
                tokenizer,
                tiny.rows(4),
                prompt="{text}",
                options=(" bad", " good"),
                out=tmp_path / "run",
                **chosen["task"],
                **chosen["engine"],
                **{name: made(name, chosen[name]) for name in ("trainable", "estimator", "epsilon", "reuse")},
            )
        assert caught.value.problems == problems, chosen
    assert refused > 500
    assert not list(tmp_path.iterdir())
