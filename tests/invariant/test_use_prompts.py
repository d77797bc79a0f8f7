"""What is asked of a run by hand: prompts, strings that end a text, its place."""

import json
from pathlib import Path
from typing import Any

import pytest
from trained import ROWS, completion, train

import twinpass
from twinpass.cli.main import main
from twinpass.errors import DataError, ModelError


def test_prompts_that_are_no_text_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows, messages and half a character ended in a tokenizer's traceback; no tokens at all were the window's fault."""
    trained = twinpass.load(run := completion(tmp_path, "lora"))
    given: dict[str, Any] = {
        r"^prompt 2: expected a text, got a dict; .* made by write and predict$": ["a", {"text": "fine"}],
        r"^prompt 1: expected a text, got a list": [[{"role": "user", "content": "a"}]],
        r"^prompt 1: expected a text, got a NoneType": [None],
        r"^prompt 2 holds half a character \(\\ud83d": ["a", "\ud83d"],
    }
    for message, prompts in given.items():
        with pytest.raises(DataError, match=message):
            trained.generate(prompts, 3)
    with pytest.raises(ModelError, match="max_tokens has to be 1 or more"):
        trained.generate(["a"], 0)
    with pytest.raises(ModelError, match="max_tokens has to be 1 or more"):
        list(trained.write(ROWS, trained.sampling(0)))
    rows = tmp_path / "prompts.jsonl"
    rows.write_text('{"prompt": "a"}\n{"prompt": "\\ud83d"}\n')
    capsys.readouterr()
    assert main(["generate", str(run), "--rows", str(rows), "--json"]) == 2
    assert (
        f"{rows}, row 2: the command uses {{prompt}}, which holds half" in json.loads(capsys.readouterr().out)["error"]
    )
    assert main(["generate", str(run), "--prompt", "\udcff", "--json"]) == 2
    assert "prompt 1 holds half a character" in json.loads(capsys.readouterr().out)["error"]


def test_a_stop_string_may_stand_alone(tmp_path: Path) -> None:
    """It was taken for its letters, each of which ended the text."""
    trained = twinpass.load(completion(tmp_path, "lora"))
    prompt = "Review: a fine film Sentiment:"
    (text,) = trained.generate([prompt], 5)
    word = text.split()[1]
    assert len(word) > 1
    assert (
        trained.generate([prompt], 5, stop=word)
        == trained.generate([prompt], 5, stop=[word])
        == [text[: text.index(word)]]
    )
    assert trained.sampling(stop=word).stop == (word,)


def test_a_run_is_found_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As finetune(out="~/run") leaves it."""
    train(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert twinpass.load("~/run").predict(ROWS) == twinpass.load(tmp_path / "run").predict(ROWS)
