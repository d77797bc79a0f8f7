"""``--json`` means the same in every command: standard output holds JSON, as many lines as the page says, and nothing else."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from benching import no_memory_told
from pages import ROOT
from tiers import some_fast

from twinpass.cli.main import main, parser

SMALL = ("--probes", "2")
COMMANDS: Mapping[str, tuple[Sequence[str], int | None]] = {
    "train": (("config.toml",), None),
    "runs": (("runs",), 2),
    "predict": (("runs/mine", "rows.jsonl"), 3),
    "predict --out": (("runs/mine", "rows.jsonl", "--out", "answers.jsonl"), 1),
    "generate": (("runs/mine", "--prompt", "a", "--prompt", "fine", "--max-tokens", "2"), 2),
    "eval": (("runs/mine", "--compare", "runs/other"), 1),
    "doctor": (("model", "--seconds", "0"), 1),
    "export": (("runs/mine", "--format", "peft", "--out", "adapter"), 1),
    "replay": (("runs/mine", "--out", "again"), 1),
    "bench": (("config.toml", "--repeats", "1", *SMALL), 1),
    "profile": (("config.toml", *SMALL, "--eps", "1e-3", "--policies", "exact", "one_sided", "--out", "profile"), 1),
}
"""What follows each command, and the lines that it prints; None: those of a run."""

RUN_BY = {"demo": "tests/unit/test_packaged.py"}
"""Commands that are another, with words of their own."""


def lines_of(text: str) -> list[Any]:
    """Each line of a text as JSON; whatever is none raises."""
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("json")
    config = tiny.config(folder, optimizer={"steps": 3}, estimator={"kind": "spsa"}, run={"keep": "last"})
    for name in ("mine", "other"):
        assert main(["train", str(config), "--set", f"run.out={folder}/runs/{name}", "--json"]) in (0, 3)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny.rows(3)))
    return folder


@pytest.mark.parametrize("command", some_fast(COMMANDS, set(COMMANDS) - {"doctor", "bench", "profile"}))
def test_standard_output_is_json(
    command: str, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    no_memory_told(monkeypatch)
    words, count = COMMANDS[command]
    capfd.readouterr()
    assert main([command.split(maxsplit=1)[0], *words, "--json"]) in (0, 3)
    said = capfd.readouterr()
    found = lines_of(said.out)
    if count is None:
        assert [line["event"] for line in found] == ["evaluation", "step", "step", "step", "evaluation", "end"]
    else:
        assert len(found) == count
        assert not any("event" in line for line in found)
    assert not said.err, "progress and remarks are left out"


def test_no_command_is_left_out() -> None:
    (commands,) = (action for action in parser()._actions if action.choices and action.dest == "command")
    those = {name for name, own in dict(commands.choices or {}).items() if "--json" in own._option_string_actions}
    assert {command.split()[0] for command in COMMANDS} | RUN_BY.keys() == those
    page = (ROOT / "docs/watch.md").read_text()
    assert all(f"`{name}" in page for name in those)
