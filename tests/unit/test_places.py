"""Where adapters sit, by what a configuration says and leaves out."""

from pathlib import Path
from typing import Any

import pytest

from twinpass.config.load import parse
from twinpass.config.schema import Config
from twinpass.errors import ConfigError
from twinpass.model.trainable import Activated, Lora

CHOICE = {"prompt": "Review: {text}\n", "suffix": "Sentiment:", "options": [" bad", " good"]}
TEXT = {"prompt": "Question: {q}\n", "suffix": "Answer:", "completion": " {a}"}
OPEN = {"prompt": "Question: {q}\n", "completion": " {a}"}


def config(task: dict[str, Any], **sections: Any) -> Config:
    values = {"model": {"path": "m"}, "task": {"train": "rows.jsonl", **task}, "run": {"out": "run"}, **sections}
    return parse(values, "it.toml", Path("/nowhere"))


UPPER = {"targets": "outputs", "first": -20}
EVERYWHERE = {"targets": Activated().targets, "first": 0}


@pytest.mark.parametrize(
    ("said", "places"),
    [
        ({}, UPPER),
        ({"trainable": {"kind": "activated"}}, UPPER),
        ({"trainable": {"kind": "activated", "rank": 2}, "estimator": {"kind": "backprop"}}, UPPER),
        ({"trainable": {"kind": "activated", "targets": ["v_proj"]}}, {"targets": ("v_proj",), "first": 0}),
        ({"trainable": {"kind": "activated", "first": 2}}, {**EVERYWHERE, "first": 2}),
        ({"trainable": {"kind": "activated"}, "estimator": {"kind": "spsa"}}, EVERYWHERE),
        ({"trainable": {"kind": "lora"}}, EVERYWHERE),
    ],
)
def test_options_are_learned_by_adapters_on_what_upper_layers_write(
    said: dict[str, Any], places: dict[str, Any]
) -> None:
    found = config(CHOICE, **said)
    assert isinstance(found.trainable, Lora)
    assert {"targets": found.trainable.targets, "first": found.trainable.first} == places
    assert (found.values["trainable"].get("targets") == "outputs") == (places is UPPER)


def test_texts_are_learned_by_adapters_on_attention_in_all_layers() -> None:
    found, by_name = config(TEXT), config(TEXT, trainable={"kind": "activated"})
    assert found.trainable == by_name.trainable == Activated()
    assert by_name.values["trainable"] == {"kind": "activated"}
    assert config(OPEN).trainable == Lora()


@pytest.mark.parametrize("targets", ["q_proj", [], [1], "all", 3, {}])
def test_what_names_no_modules_is_refused_in_one_sentence(targets: Any) -> None:
    with pytest.raises(
        ConfigError, match=r'1 problem[^\n]*\n  - \[trainable\] targets: expected names of modules such as \["q_proj"\]'
    ):
        config(CHOICE, trainable={"kind": "lora", "targets": targets})


def test_a_server_is_told_names() -> None:
    with pytest.raises(ConfigError, match=r'\[trainable\] targets: on "sglang" modules are named'):
        config(CHOICE, trainable={"kind": "lora", "targets": "outputs"}, engine={"kind": "sglang"})
