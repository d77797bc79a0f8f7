"""A result is older than its code when a commit after its own touched one of its sources, and only then."""

import json
import subprocess
from pathlib import Path

import freshness
import pytest

ROOT = Path(__file__).parents[2]


def git(root: Path, *command: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(root), *who, *command], capture_output=True, text=True, check=True
    ).stdout.strip()


def change(root: Path, file: str) -> str:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(path.read_text() + "x" if path.exists() else "x")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "change")
    return git(root, "rev-parse", "--short=12", "HEAD")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    change(tmp_path, "src/twinpass/perturb/noise.py")
    return tmp_path


def state(root: Path, name: str, commit: str | None) -> str:
    file = root / f"{name}.json"
    file.write_text(json.dumps({"commit": commit}))
    found = freshness.age_of(file, root).state
    file.unlink()
    return found


def test_what_touches_its_sources_makes_a_result_old(checkout: Path) -> None:
    measured = change(checkout, "src/twinpass/perturb/kernels.py")
    assert state(checkout, "noise", measured) == "up to date"
    assert state(checkout, "bench-reviews-0shot", measured) == "up to date"
    change(checkout, "README.md")
    assert state(checkout, "noise", measured) == "up to date"
    change(checkout, "src/twinpass/train/trainer.py")
    assert state(checkout, "noise", measured) == "up to date"
    assert state(checkout, "bench-reviews-0shot", measured) == "older"
    change(checkout, "src/twinpass/perturb/noise.py")
    assert state(checkout, "noise", measured) == "older"


def test_what_moved_was_touched(checkout: Path) -> None:
    measured = change(checkout, "README.md")
    (checkout / "src/twinpass/perturb/gemm").mkdir()
    git(checkout, "mv", "src/twinpass/perturb/noise.py", "src/twinpass/perturb/gemm/noise.py")
    git(checkout, "commit", "-qm", "move")
    assert state(checkout, "noise", measured) == "older"


@pytest.mark.parametrize("commit", [None, "abcdef123456", "dirty"])
def test_what_names_no_commit_of_ours_is_unknown(checkout: Path, commit: str | None) -> None:
    named = change(checkout, "README.md") + "-dirty" if commit == "dirty" else commit
    assert state(checkout, "noise", named) == "unknown"


def test_sources_are_where_they_are_said_to_be() -> None:
    for file in sorted((ROOT / "benchmarks/results").glob("*.json")):
        for source in freshness.sources_of(file.stem):
            assert (ROOT / source).exists(), (file.stem, source)


def test_runs_of_one_commit_are_of_it_and_of_two_of_none(checkout: Path) -> None:
    first = change(checkout, "src/twinpass/perturb/kernels.py")
    second = change(checkout, "README.md")
    for commits, expected in (([first, first], "up to date"), ([first, second], "unknown"), ([], "unknown")):
        file = checkout / "noise.json"
        file.write_text(json.dumps({"runs": [{"commit": commit} for commit in commits]}))
        assert freshness.age_of(file, checkout).state == expected
        file.unlink()
