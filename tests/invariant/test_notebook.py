"""The notebook runs from top to bottom, and again."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

NOTEBOOK = Path(__file__).parents[2] / "examples/first-steps.ipynb"


def code(cells: list[dict[str, Any]], model: str) -> list[str]:
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert sum('"smollm2"' in source for source in sources) == 2
    return [source.replace('"smollm2"', repr(model)) for source in sources]


def executed(sources: list[str]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for source in sources:
        exec(source, names)
    return names


def test_every_cell_runs_and_can_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook["cells"]), (
        "kept without output"
    )
    monkeypatch.chdir(tmp_path)
    sources = code(notebook["cells"], str(tiny.save(tmp_path / "model")))
    first = executed(sources)
    said = capsys.readouterr().out.splitlines()
    journal = Path("runs/first-steps/journal.jsonl")
    before = journal.read_bytes()
    assert 1 < first["summary"]["steps"] <= 40
    assert said[0].startswith("accuracy before: ")
    again = executed(sources)
    assert journal.read_bytes() == before, "a finished run is left as it is"
    assert capsys.readouterr().out.splitlines() == said
    assert again["summary"]["kept_metric"] == first["summary"]["kept_metric"]
    assert {path.name for path in Path("runs").iterdir()} == {"first-steps"}


@pytest.mark.full
def test_on_the_real_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer steps than it takes."""
    monkeypatch.chdir(tmp_path)
    whole = 'exist="resume"'
    sources = code(json.loads(NOTEBOOK.read_text())["cells"], "smollm2")
    assert sum(whole in source for source in sources) == 1
    few = f"{whole}, optimizer=twinpass.AdamW(lr=4e-3, steps=6)"
    found = executed([source.replace(whole, few) for source in sources])
    assert found["summary"]["steps"] == 6
    assert found["summary"]["kept_metric"] >= found["summary"]["base_metric"]
    assert set(found["answer"].probabilities) == {"bad", "good"}
