"""Settings under the names that PEFT, transformers and TRL give them are refused with ours, in Python (by a note below the error) and in a file."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from pydantic import ValidationError

import twinpass
from twinpass.config.given import Words
from twinpass.config.load import load_config
from twinpass.config.schema import SECTIONS
from twinpass.errors import ConfigError
from twinpass.settings import OTHERS, meant

BY_NAME: dict[str, Any] = {
    name: value for name in dir(twinpass) if hasattr(value := getattr(twinpass, name), "__pydantic_fields__")
}
REFUSED: list[tuple[Callable[[], Any], str, str]] = [
    (lambda: twinpass.Lora(r=8), "Lora", "r: no such setting (did you mean 'rank'?); there are rank, alpha, targets"),  # type: ignore[call-arg]
    (lambda: twinpass.Activated(lora_alpha=16), "Activated", "lora_alpha: no such setting (did you mean 'alpha'?)"),  # type: ignore[call-arg]
    (lambda: twinpass.Lora(target_modules=["q_proj"]), "Lora", "did you mean 'targets'?"),  # type: ignore[call-arg]
    (lambda: twinpass.AdamW(learning_rate=1e-3), "AdamW", "did you mean 'lr'?"),  # type: ignore[call-arg]
    (lambda: twinpass.Generation(max_new_tokens=8), "Generation", "did you mean 'max_tokens'?"),  # type: ignore[call-arg]
    (lambda: twinpass.ExactReuse(buget=1), "Exact", "did you mean 'budget'?"),  # type: ignore[call-arg]
    (lambda: twinpass.Lora(dropout=0.1), "Lora", "dropout: no such setting; there are rank"),  # type: ignore[call-arg]
]


@pytest.mark.parametrize(("make", "what", "message"), REFUSED)
def test_python_is_told_our_name(make: Callable[[], Any], what: str, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        make()
    (note,) = caught.value.__notes__
    assert message in note
    assert note.startswith(f"{what}: ")


def test_every_name_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        twinpass.Lora(lora_alpha=16, target_modules=["q_proj"])  # type: ignore[call-arg]
    assert [note.split(": ")[1] for note in caught.value.__notes__] == ["lora_alpha", "target_modules"]


def test_a_value_that_is_wrong_is_left_to_pydantic() -> None:
    with pytest.raises(ValidationError, match="greater than 0") as caught:
        twinpass.AdamW(lr=-1.0, steps=1)
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_every_class_of_settings_says_what_it_has(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        BY_NAME[name](**{"no-setting": 1})
    (note,) = caught.value.__notes__
    assert note.startswith(f"{BY_NAME[name].__name__}: no-setting: no such setting")
    assert all(field.name in note for field in fields(BY_NAME[name]) if field.init)


def test_a_class_of_ones_own_keeps_its_settings() -> None:
    from pydantic.dataclasses import dataclass

    from twinpass.settings import STRICT

    @dataclass(frozen=True, config=STRICT)
    class Wider(twinpass.Lora):
        """More than Lora has."""

        width: int = 1

    assert (Wider(rank=4, width=3).rank, Wider(rank=4, width=3).width) == (4, 3)


def test_a_file_is_told_our_name_beside_its_other_faults(tmp_path: Path) -> None:
    task = {"prompt": "{text}", "suffix": ":", "options": [" a", " b"], "train": "rows.jsonl"}
    values: dict[str, dict[str, Any]] = {
        "model": {"path": "m"},
        "task": task,
        "trainable": {"kind": "lora", "r": 8, "alpha": "much"},
        "run": {"out": "o"},
    }
    (tmp_path / "my.toml").write_text(tomli_w.dumps(values))
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "my.toml")
    assert "[trainable] r: no such key (did you mean 'rank'?)" in str(caught.value)
    assert "[trainable] alpha: input should be a valid number" in str(caught.value)


def test_each_name_stands_for_a_setting_that_there_is() -> None:
    kinds = [kind for section in SECTIONS.values() for kind in section.kinds.values()]
    known = {field.name for kind in kinds for field in fields(kind)} | {"max_tokens"}
    assert set(OTHERS.values()) <= known
    assert not OTHERS.keys() & known, "a name of ours is no other's"


def test_a_name_of_others_goes_before_one_that_looks_alike() -> None:
    assert meant("r", ["rows", "rank"]) == "rank"
    assert meant("lora_alpha", ["lora_alpha_", "alpha"]) == "alpha"
    assert meant("rnk", ["rank"]) == "rank"
    assert meant("qqq", ["rank"]) is None


WORDS: dict[str, dict[str, Any]] = {
    "options": {"prompt": "{text}", "options": [" a", " b"]},
    "completion": {"prompt": "{text}", "completion": "{answer}"},
    "rewards": {"prompt": "{text}", "rewards": len},
    "messages": {},
    "rows alone": {},
}


@pytest.mark.parametrize("words", WORDS)
def test_arguments_that_no_task_has_are_told_where_they_go(words: str) -> None:
    given = {"prompt": "", "suffix": "", "completion": "", "options": (), "label": "label", "labels": (), "rewards": ()}
    settings: dict[str, Any] = {"messages": "messages"} if words == "messages" else {}
    described = Words.of(**{**given, **WORDS[words]})
    with pytest.raises(ConfigError) as caught:
        described.task({**settings, "learning_rate": 1e-3, "windw": 4, "scale_rewards": "none", "peft_config": None})
    assert "learning_rate: there is no such argument; it belongs to the optimizer" in str(caught.value)
    assert "windw: there is no such argument; did you mean window?" in str(caught.value)
    assert "scale_rewards: there is no such argument; advantages are in standard deviations" in str(caught.value)
    assert "peft_config: there is no such argument; it belongs to what is trained" in str(caught.value)
