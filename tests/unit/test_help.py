"""What is printed for people: help on 80 columns, and results where a pipe finds them."""

import argparse
import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import tiny

import twinpass
from twinpass.cli.main import main, parser


def grammars() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    root = parser()
    yield "twinpass", root
    (commands,) = (action for action in root._actions if isinstance(action, argparse._SubParsersAction))
    yield from commands.choices.items()


@pytest.mark.parametrize("name", [name for name, _ in grammars()])
def test_a_help_text_fits_on_80_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = dict(grammars())[name].format_help().splitlines()
    assert not [line for line in lines if len(line) > 80]


def test_the_overview_names_every_command() -> None:
    root, *commands = grammars()
    description = root[1].description
    assert description is not None
    assert [name for name, _ in commands if f"  twinpass {name}" not in description] == []


def test_the_version_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"twinpass {twinpass.__version__}\n"


def test_results_are_on_standard_output_and_remarks_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = [" good", " bad"]
    config = tiny.config(tmp_path, run={"out": "runs/mine"}, optimizer={"steps": 1}, task={"options": options})
    assert main(["train", str(config)]) in (0, 3)
    assert capsys.readouterr().err.endswith("use it    twinpass predict runs/mine ROWS\n")
    assert main(["runs"]) == 0
    said = capsys.readouterr()
    assert "runs/mine" in said.out
    assert not said.err
    assert main(["eval", "runs/mine"]) == 0
    said = capsys.readouterr()
    head, *lines = said.out.splitlines()
    assert head.startswith("held-out accuracy at step ")
    assert "loading runs/mine" in said.err
    assert "held-out" not in said.err
    place = next(i for i, line in enumerate(lines) if line.startswith("confusion"))
    columns, *rows = (line.split() for line in lines[place + 1 :])
    assert columns == ["good", "bad"]
    assert [row[0] for row in rows] == ["good", "bad"]
    assert main(["eval", "runs/mine", "train.jsonl", "--compare", "runs/mine"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("accuracy at step "), "these rows are not held out"
    value = re.search(r"at step \d+: (\S+)", said.out)
    assert value is not None
    assert f"against runs/mine ({value[1]}): accuracy +0.000" in said.out


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "{}", "rows.jsonl"],
        ["generate", "{}", "--prompt", "a"],
        ["replay", "{}"],
        ["train", "--resume", "{}"],
        ["export", "{}", "--format", "peft", "--out", "o"],
        ["eval", "{}"],
    ],
)
def test_what_is_no_run_says_which_are(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main([*(word.format("empty") for word in command), "--json"]) == 2
    said = json.loads(capsys.readouterr().out)
    assert said["error"].startswith(
        "empty/journal.jsonl: there is no journal here; give the folder of a run, as 'twinpass runs'"
    )


@pytest.mark.parametrize(
    ("command", "left"),
    [
        (["train", "it.toml"], "journal"),
        (["predict", "run", "rows.jsonl", "--out", "o"], "goes on"),
        (["runs"], "interrupted\n"),
    ],
)
def test_what_is_interrupted_says_what_it_leaves(
    command: list[str], left: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = import_module(f"twinpass.cli.{command[0]}")

    def interrupted(*args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_predict" if command[0] == "predict" else "run", interrupted)
    assert main(command) == 130
    assert left in capsys.readouterr().err
