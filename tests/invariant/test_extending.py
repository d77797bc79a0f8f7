"""docs/extending.md is followed: its files are written, found by entry point, trained with, and held to their contracts."""

import json
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
from contracts import CONTRACTS, engine_contract, named_task_contract
from extensions import install
from pages import snippets, text_of

from twinpass.cli.main import main
from twinpass.config.load import load_config
from twinpass.config.named import NAMED, TaskByName
from twinpass.config.schema import SECTIONS
from twinpass.engine.subject import Subject
from twinpass.model.trainable import Full
from twinpass.reuse.auto import Auto
from twinpass.task.rows import Row

PAGE = text_of("docs/extending.md")
FILES: Mapping[str, str] = {
    code.splitlines()[0].removeprefix("# "): code for code in snippets("docs/extending.md", "python")
}
POINTS, NAMED_TASK = snippets("docs/extending.md", "toml")

CHOICES: Mapping[str, Mapping[str, Any]] = {
    "objective": {"kind": "margin", "margin": 2.0},
    "estimator": {"kind": "fourth_order", "probes": 2},
    "optimizer": {"kind": "capped", "most": 2.0, "steps": 3},
    "reuse": {"policy": "mostly_frozen", "every": 2},
    "epsilon": {"kind": "halving", "start": 1e-2, "every": 2},
    "trainable": {"kind": "norms"},
    "task": {
        "kind": "verdict",
        "score": "label",
        "prompt": "Review: {text}",
        "train": "train.jsonl",
        "eval": "eval.jsonl",
    },
    "engine": {"kind": "plain"},
}
"""What a configuration says to take the page's kind, by section."""

TRAINABLE = {"kind": "full"}


@pytest.fixture(autouse=True)
def more_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's package, installed."""
    groups = tomllib.loads(POINTS)["project"]["entry-points"]
    install(tmp_path / "site", monkeypatch, {"more_kinds/__init__.py": "", **FILES}, groups, "more-kinds")
    monkeypatch.delitem(sys.modules, "more_kinds", raising=False)


def chosen(folder: Path, *names: str) -> Path:
    """A configuration that trains a tiny model with the page's kinds of some sections."""
    sections: dict[str, Any] = {"trainable": TRAINABLE, "optimizer": {"steps": 3}}
    sections |= {name: CHOICES[name] for name in names}
    return tiny.config(folder, **sections)


def test_the_page_has_a_kind_of_every_family() -> None:
    families = {name for name, section in SECTIONS.items() if hasattr(section.kinds, "group")}
    assert families == set(CHOICES)
    groups = {section.kinds.group for section in SECTIONS.values() if hasattr(section.kinds, "group")}
    groups.add(NAMED.group)
    assert set(tomllib.loads(POINTS)["project"]["entry-points"]) == groups
    assert all(f"`{group}`" in PAGE for group in groups)


@pytest.mark.parametrize(
    "names", [[name for name in CHOICES if name != "engine"], ["engine"]], ids=["all others", "engine"]
)
@pytest.mark.filterwarnings("ignore:.*mostly_frozen.*")
def test_a_run_trains_with_them(names: list[str], tmp_path: Path) -> None:
    assert main(["train", str(chosen(tmp_path, *names))]) == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 3
    resolved, again = (
        tomllib.loads((tmp_path / "run/config.toml").read_text()),
        load_config(tmp_path / "run/config.toml"),
    )
    for name in names:
        assert CHOICES[name].keys() <= resolved[name].keys()
        assert type(getattr(again, name)).__module__.startswith("more_kinds.")


@pytest.mark.parametrize("section", [name for name in CHOICES if name not in ("task", "engine")])
def test_it_keeps_the_contract_of_its_family(section: str, tmp_path: Path) -> None:
    CONTRACTS[section](getattr(load_config(chosen(tmp_path, section)), section))


def test_the_task_keeps_its_contract(tmp_path: Path) -> None:
    rows = [Row(row, f"row {i}") for i, row in enumerate(tiny.rows(5))]
    CONTRACTS["task"](load_config(chosen(tmp_path, "task")).task, rows, tiny.tokenizer())


def test_the_task_by_name_keeps_its_contract(tmp_path: Path) -> None:
    task = load_config(tiny.config(tmp_path, task={"kind": "named", **tomllib.loads(NAMED_TASK)["task"]})).task
    assert isinstance(task, TaskByName)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/colours.csv").write_text("thing,label\na rose,red\ngrass,green\n")
    named_task_contract(task.named, tmp_path / "data")
    train, held_out = task.rows()
    assert (len(train), held_out) == (2, None)


def test_the_engine_keeps_its_contract_and_says_what_it_cannot_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load_config(chosen(tmp_path, "engine")).engine
    model = tiny.model()
    subject = Subject(
        model, tiny.tokenizer(), Full(), Auto(), "", "float32", reload=lambda: dict(tiny.model().named_parameters())
    )
    engine_contract(settings.start(subject), near=1e-4)
    path = tiny.config(tmp_path, engine=CHOICES["engine"])
    assert main(["train", str(path)]) == 2
    assert '[engine] kind: "plain" knows no adapters' in capsys.readouterr().err
    path = tiny.config(tmp_path, trainable=TRAINABLE, engine={**CHOICES["engine"], "perturbation": "inplace"})
    assert main(["train", str(path)]) == 2
    assert '[engine] perturbation: "plain" puts copies back' in capsys.readouterr().err
