"""The commit that a result names."""

import subprocess
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from shutil import copyfile
from types import ModuleType

import pytest

from twinpass.report import environment


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with the module, a result and a page in it, all committed."""
    for name in ("src/environment.py", "benchmarks/results/a.json", "docs/page.md"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}")
    copyfile(str(environment.__file__), tmp_path / "src/environment.py")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        author = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *author, *command], check=True)
    return tmp_path


def copied(checkout: Path) -> ModuleType:
    spec = spec_from_file_location("copied_environment", checkout / "src/environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_new_results_and_pages_leave_the_code_as_it_is(checkout: Path) -> None:
    before = copied(checkout).commit()
    assert len(before) == 12
    (checkout / "benchmarks/results/a.json").write_text("[]")
    (checkout / "docs/page.md").unlink()
    (checkout / "new.json").write_text("{}")
    assert copied(checkout).commit() == before


def test_changed_code_is_named(checkout: Path) -> None:
    before = copied(checkout).commit()
    with (checkout / "src/environment.py").open("a") as file:
        file.write("\n")
    assert copied(checkout).commit() == f"{before}-dirty"


def test_no_repository_is_no_commit(checkout: Path) -> None:
    (checkout / ".git").rename(checkout / "gone")
    assert copied(checkout).commit() is None
