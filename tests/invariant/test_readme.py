"""The Python example in the README runs as it stands, in under ten lines."""

import json
from pathlib import Path
from typing import Literal

import pytest
import tiny
from pages import snippets


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = snippets("README.md", "python")
    assert len([line for line in code.splitlines() if line.strip()]) < 10
    tiny.save(tmp_path / "my-model")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["summary"] == json.loads((tmp_path / "runs/mine/summary.json").read_text())
    assert (tmp_path / "runs/mine/adapter/adapter_model.safetensors").exists()


@pytest.mark.parametrize("perturbation", ["tandem", "inplace"])
def test_a_full_run_resumes_from_python(perturbation: Literal["tandem", "inplace"], tmp_path: Path) -> None:
    from twinpass import Full, Sgd, Spsa, finetune

    def train(folder: str, resume: bool = False) -> None:
        finetune(
            tiny.model(), tiny.tokenizer(), tiny.rows(6), prompt="Review: {text}", options=[" bad", " good"],
            out=tmp_path / folder, trainable=Full(), optimizer=Sgd(lr=1e-5, steps=6, batch_size=2),
            estimator=Spsa(), perturbation=perturbation, resume=resume,
        )  # fmt: skip

    train("whole")
    journal = tmp_path / "whole/journal.jsonl"
    lines = journal.read_bytes()
    weights = (tmp_path / "whole/model/model.safetensors").read_bytes()
    journal.write_bytes(b"".join(lines.splitlines(keepends=True)[:4]))
    train("whole", resume=True)
    assert journal.read_bytes() == lines
    assert (tmp_path / "whole/model/model.safetensors").read_bytes() == weights
