"""The Python on the page about use runs as it stands, and gives the trained model's own numbers."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from pages import snippets

import twinpass
from twinpass.cli.main import main


@pytest.mark.parametrize("kind", ["lora", "activated"])
def test_the_python_on_the_page_runs(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.config(tmp_path, trainable={"kind": kind, "rank": 2}, optimizer={"lr": 0.3, "steps": 3})
    monkeypatch.chdir(tmp_path)
    Path("my-model").symlink_to("model")
    assert main(["train", str(config), "--set", "run.out=runs/mine", "--set", "run.keep=last", "--json"]) in (0, 3)
    ours, peft, hf, elsewhere = snippets("docs/use.md", "python")
    assert elsewhere.startswith("import sglang"), "which tests/engines/sglang runs where SGLang is installed"
    to_peft, to_hf, *_ = snippets("docs/use.md", "sh")
    assert main([*to_peft.split()[1:], "--json"]) == 0
    trained = twinpass.load("runs/mine")
    for code in [ours, peft] if kind == "activated" else [ours, peft, hf]:
        names: dict[str, Any] = {}
        if code is hf:
            assert main([*to_hf.split()[1:], "--json"]) == 0
        exec(code, names)
        if code is ours:
            assert names["answer"] == trained.predict([{"text": "a fine film"}])[0]
        else:
            with torch.no_grad():
                own = trained.model(input_ids=names["inputs"]["input_ids"]).logits
            torch.testing.assert_close(names["logits"], own, atol=1e-5, rtol=1e-5)
