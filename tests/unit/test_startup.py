"""What is imported, and when: nobody waits for torch to read a help text or to hear of a mistake."""

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import twinpass

HEAVY = ("torch", "transformers", "numba", "matplotlib", "sglang")


def heavy_after(code: str, folder: Path) -> list[str]:
    """Which heavy packages a fresh interpreter has imported after ``code``."""
    ending = f"import json, sys; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    command = [sys.executable, "-c", f"{code}\n{ending}"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, timeout=120)
    found: list[str] = json.loads(ran.stdout.splitlines()[-1])
    return found


COMMAND = """
from twinpass.cli.main import main
try:
    code = main({})
except SystemExit as end:
    code = end.code
assert code == {}, code
"""


@pytest.mark.parametrize(
    "code",
    [
        "import twinpass",
        "import twinpass; twinpass.Lora(rank=2); twinpass.Sgd(lr=1e-3, steps=2); twinpass.ReflectedReuse()",
        COMMAND.format(["--help"], 0),
        COMMAND.format(["train", "bad.toml"], 2),
        *(
            pytest.param(COMMAND.format(*each), marks=pytest.mark.full)
            for each in (
                (["train", "--help"], 0),
                (["profile", "--help"], 0),
                (["no-such-command"], 2),
                *(([command, "bad.toml"], 2) for command in ("eval", "profile", "bench")),
            )
        ),
    ],
)
def test_nothing_heavy_is_imported(code: str, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text('[model]\npath = "there-is-none"\n[optimizer]\nlr = -1.0\nsteps = 3\n')
    assert heavy_after(code, tmp_path) == []


@pytest.mark.parametrize(
    ("model", "rows", "message"),
    [("m", "none.jsonl", "none.jsonl: there is no such file"), ("./none", "rows.jsonl", "there is no folder '")],
)
def test_what_is_not_there_is_said_before_models_can_be_loaded(
    model: str, rows: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir()
    for name in ("config", "tokenizer", "tokenizer_config"):
        (tmp_path / f"m/{name}.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text('{"text": "fine", "label": 1}\n')
    lines = ["[model]", f'path = "{model}"', "[task]", f'train = "{rows}"', "[run]", 'out = "run"']
    (tmp_path / "my.toml").write_text("\n".join(lines))
    code = f"""
import contextlib, io
from twinpass.cli.main import main
with contextlib.redirect_stderr(io.StringIO()) as said:
    assert main(["train", "my.toml"]) == 2
assert {message!r} in said.getvalue(), said.getvalue()
"""
    assert heavy_after(code, tmp_path) == []
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_is_taken_is_refused_before_models_can_be_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "journal.jsonl").write_text('{"kind":"header"}\n')
    (tmp_path / "rows.jsonl").write_text('{"text": "fine", "label": 1}\n')
    (tmp_path / "my.toml").write_text(
        '[model]\npath = "owner/name"\n[task]\ntrain = "rows.jsonl"\n[run]\nout = "run"\n'
    )
    code = """
import contextlib, io
from twinpass.cli.main import main
with contextlib.redirect_stderr(io.StringIO()) as said:
    assert main(["train", "my.toml"]) == 2
assert "run already holds a run: continue it with" in said.getvalue(), said.getvalue()
"""
    assert heavy_after(code, tmp_path) == []


def test_heavy_packages_are_noticed(tmp_path: Path) -> None:
    assert heavy_after("import twinpass.perturb.draw", tmp_path) == ["numba"]


def test_type_checkers_and_python_see_the_same_names() -> None:
    block = next(node for node in ast.parse(inspect.getsource(twinpass)).body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    declared = {alias.asname or alias.name: (node.module, alias.name) for node in imports for alias in node.names}
    assert set(declared) == set(twinpass.__all__) - {"__version__"} <= set(dir(twinpass))
    for name, (module, original) in declared.items():
        assert module is not None
        assert getattr(twinpass, name) is getattr(sys.modules[module], original)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Adam'"):
        twinpass.Adam  # type: ignore[attr-defined]  # noqa: B018


def test_version_is_that_of_the_project() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert twinpass.__version__ == project["version"]
