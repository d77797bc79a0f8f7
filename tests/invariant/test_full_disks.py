"""A disk that takes no more while something is handed on: one message with a remedy, and nothing half-written."""

import json
import os
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
from chaos import mounted
from tiers import some_fast
from trained import train

from twinpass.cli.main import main
from twinpass.use.predictions import write


def is_whole(path: Path) -> bool:
    data = path.read_bytes()
    return data.endswith(b"IEND\xaeB\x60\x82") if path.suffix == ".png" else bool(json.loads(data))


COMMANDS: Mapping[str, Sequence[str]] = {
    "peft": ("export", "run", "--format", "peft"),
    "hf": ("export", "run", "--format", "hf", "--merge"),
    "gguf-ready": ("export", "run", "--format", "gguf-ready"),
    "replay": ("replay", "run"),
    "profile": ("profile", "config.toml", "--probes", "2", "--eps", "1e-3", "--policies", "exact", "one_sided"),
}
"""Commands that write a folder."""


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def sizes(folder: Path) -> list[int]:
    return sorted({path.stat().st_size for path in folder.rglob("*") if path.is_file()})


@pytest.mark.parametrize("command", some_fast(COMMANDS, ["hf", "profile"]))
def test_whichever_file_does_not_fit_nothing_is_left(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file in its turn: the limit lies just below its size."""
    train(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = [*COMMANDS[command], "--json", "--out"]
    assert main([*words, "sound"]) == 0
    whole = sizes(Path("sound"))
    assert len(whole) > 1
    there = set(tmp_path.rglob("*"))
    for size in whole:
        capsys.readouterr()
        with files_up_to(size - 1):
            assert main([*words, "above/new"]) == 1
        error = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
        place, _, rest = error.partition(" cannot be written: ")
        assert place.startswith("above/new")
        assert ".part" not in place
        assert rest == "File too large; raise the limit on the size of files (ulimit -f)"
        left = set(tmp_path.rglob("*")) - there
        assert all(path.is_dir() or is_whole(path) for path in left) if command == "profile" else not left
    assert main([*words, "above/new"]) == 0


@pytest.mark.parametrize("command", ["predict", "generate"])
def test_answers_stay_as_far_as_they_went_and_are_gone_on_from(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path)
    rows = tmp_path / "prompts.jsonl"
    rows.write_text("".join(json.dumps({"prompt": row["text"], **row}) + "\n" for row in tiny.rows(6)))
    words = [command, str(run), *(["--rows"] if command == "generate" else []), str(rows), "--json", "--out"]
    words = [*words[:-2], "--max-tokens", "2", *words[-2:]] if command == "generate" else words
    whole, out = tmp_path / "sound.jsonl", tmp_path / "new/answers.jsonl"
    assert main([*words, str(whole)]) == 0
    capsys.readouterr()
    with files_up_to(whole.stat().st_size // 2):
        assert main([*words, str(out)]) == 1
    error = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    assert error == f"{out} cannot be written: File too large; raise the limit on the size of files (ulimit -f)"
    assert whole.read_bytes().startswith(out.read_bytes())
    assert out.read_bytes()
    assert main([*words, str(out)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["continued_from"] > 0
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.full
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_without_room_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, seen = train(tmp_path), set()
    for size in (4, 8, 16, 32, 64, 128):
        capsys.readouterr()
        with mounted(tmp_path / f"small-{size}", f"{size}k"):
            out = tmp_path / f"small-{size}/out"
            code = main(["export", str(run), "--format", "hf", "--merge", "--out", str(out), "--json"])
            seen.add(code)
            error = json.loads(capsys.readouterr().out.splitlines()[-1]).get("error", "")
            assert code == 0 or "make room there, or choose a place that has some" in error
            assert code == 0 or not list(out.parent.iterdir())
    assert 1 in seen


def test_what_fails_while_answers_are_computed_is_not_the_files(tmp_path: Path) -> None:
    def lines() -> Iterator[str]:
        yield "one\n"
        raise ConnectionError("the server went away")

    file = tmp_path / "answers.jsonl"
    with pytest.raises(ConnectionError, match="the server went away"):
        write(file, lines())
    assert file.read_text() == "one\n"
