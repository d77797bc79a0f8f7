"""The Python on the page about use runs as it stands, and gives the trained model's own numbers."""

import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import twinpass
from twinpass.cli.main import main

PAGE = Path(__file__).parents[2] / "docs/use.md"


def snippets(language: str) -> list[str]:
    """Those of the page but SGLang's, which run where SGLang is installed (tests/engines/sglang)."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text().split("\n## SGLang\n")[0], re.S)


@pytest.mark.parametrize("kind", ["lora", "activated"])
def test_the_python_on_the_page_runs(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.config(tmp_path, trainable={"kind": kind, "rank": 2}, optimizer={"lr": 0.3, "steps": 3})
    monkeypatch.chdir(tmp_path)
    Path("my-model").symlink_to("model")
    assert main(["train", str(config), "--set", "run.out=runs/mine", "--set", "run.keep=last", "--json"]) in (0, 3)
    ours, peft, hf = snippets("python")
    to_peft, to_hf, *_ = snippets("sh")
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
