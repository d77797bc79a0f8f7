"""A run whose rows, tokenizer or code have changed is refused, or goes on and says so; its journal is replayed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from broken_off import ENDED, cut, kinds, train, weights
from tensors import same

from twinpass import AdamW, Backprop, Full, Lora, Sgd, Spsa, finetune
from twinpass.cli.main import main
from twinpass.config.load import load_config
from twinpass.errors import JournalError
from twinpass.train.journal import read


def flip(file: Path) -> None:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({**row, "label": 1 - row["label"]}) + "\n" for row in rows))


def test_other_rows_are_refused_or_accepted_and_journaled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = tiny.config(tmp_path), tmp_path / "run"
    assert train(config) in ENDED
    before = cut(run, 4)
    flip(tmp_path / "train.jsonl")
    short = (run / "journal.jsonl").read_bytes()
    resume = ["train", "--resume", str(run), "--json"]
    assert main(resume) == 2
    said = capsys.readouterr().err
    assert "the training rows are others; rows are tokenised otherwise" in said
    assert "held-out rows" not in said
    assert "--accept-changes" in said
    assert (run / "journal.jsonl").read_bytes() == short
    assert main([*resume, "--accept-changes"]) in ENDED
    assert kinds(run)[3] == "changes"
    (record,) = [record for record in read(run / "journal.jsonl").records if record["kind"] == "changes"]
    assert set(record["ground"]) == {"train", "examples"}
    assert json.loads((run / "summary.json").read_text())["accepted_changes"] == ["examples", "train"]
    assert (run / "journal.jsonl").read_bytes() != before
    capsys.readouterr()
    assert main(resume) in ENDED, "what was accepted is what it stands on"
    flip(tmp_path / "train.jsonl")
    assert main(resume) == 2, "and what it began with is not, any more"
    assert main(["replay", str(run), "--out", str(tmp_path / "again"), "--json"]) == 0
    assert same(weights(tmp_path / "again"), weights(run)), "its updates are in the journal, whatever the rows were"


def test_another_tokenizer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = tiny.config(tmp_path), tmp_path / "run"
    assert train(config) in ENDED
    cut(run, 4)
    file = tmp_path / "model/tokenizer.json"
    file.write_text(file.read_text().replace('"fine": 6', '"fine": 7').replace('"dull": 7', '"dull": 6'))
    assert main(["train", "--resume", str(run), "--json"]) == 2
    said = capsys.readouterr().err
    assert "the tokenizer is another one; rows are tokenised otherwise" in said


def test_other_code_is_refused_and_a_journal_that_does_not_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = tiny.config(tmp_path), tmp_path / "run"
    assert train(config) in ENDED
    cut(run, 4)
    now = read(run / "journal.jsonl").header["ground"]
    monkeypatch.setattr("twinpass.config.ground.code", lambda: {"source": now["source"], "torch": "99"})
    assert main(["train", "--resume", str(run), "--json"]) == 2
    assert f"torch was {now['torch']}, now 99" in capsys.readouterr().err


@pytest.mark.parametrize("trainable", [Lora(rank=2), Full()])
def test_a_run_of_finetune_is_replayed(trainable: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.save(tmp_path / "model")
    config, run = load_config(tiny.config(tmp_path)), tmp_path / "made"
    from twinpass import load_model

    model, tokenizer = load_model(config.model.path)
    given: Any = {"prompt": "Review: {text}", "suffix": " Sentiment:", "options": [" bad", " good"], "out": run}
    finetune(
        model,
        tokenizer,
        tiny.rows(8),
        tiny.rows(4),
        **given,
        trainable=trainable,
        optimizer=Sgd(lr=1e-3, steps=3, batch_size=4),
    )
    assert main(["replay", str(run), "--out", str(tmp_path / "again"), "--json"]) == 0
    assert same(weights(tmp_path / "again"), weights(run))
    assert main(["replay", str(run), "--step", "1", "--json"]) == 0
    assert not same(weights(run / "step-1"), weights(run))
    for command, remedy in ((["eval", str(run)], "rows.jsonl"), (["train", "--resume", str(run)], "resume=True")):
        capsys.readouterr()
        assert main(command) == 2
        assert remedy in capsys.readouterr().err
    with pytest.raises(JournalError, match=r'exist="resume" continues it, .* or choose another folder with out='):
        finetune(model, tokenizer, tiny.rows(8), **given)
    shutil.rmtree(tmp_path / "model")
    assert main(["replay", str(run), "--json"]) == 2
    assert "known to Python only" in capsys.readouterr().err


@pytest.mark.parametrize("estimator", [Spsa(), Backprop()])
def test_python_is_asked_the_same(estimator: Any, tmp_path: Path) -> None:
    """Other rows and another tokenizer, of a run along probes and of one along the gradient; nothing is written by who is refused."""
    run = tmp_path / "run"
    optimizer = Sgd(lr=1e-3, steps=6, batch_size=4) if not estimator.whole else AdamW(lr=1e-3, steps=6, batch_size=4)
    given: Any = {"prompt": "Review: {text}", "suffix": " Sentiment:", "options": [" bad", " good"], "out": run}
    given |= {"trainable": Lora(rank=2), "estimator": estimator, "optimizer": optimizer}
    rows = tiny.rows(8)
    others = [{**row, "label": 1 - row["label"]} for row in rows]
    finetune(tiny.model(), tiny.tokenizer(), rows, **given)
    cut(run, 4)
    short = (run / "journal.jsonl").read_bytes()
    more = tiny.tokenizer()
    more.add_tokens(["quick"])
    for tokenizer, chosen, words in (
        (tiny.tokenizer(), others, "the training rows are others; rows are tokenised otherwise"),
        (more, rows, "the tokenizer is another one"),
    ):
        with pytest.raises(JournalError, match=words) as refused:
            finetune(tiny.model(), tokenizer, chosen, **given, exist="resume")
        assert "accept_changes=True" in str(refused.value)
        assert (run / "journal.jsonl").read_bytes() == short
    accepting: Any = {**given, "exist": "resume", "accept_changes": True}
    if estimator.whole:
        with pytest.raises(JournalError, match=r"step 0, taken again, gave a loss of .* the rows .* are others"):
            finetune(tiny.model(), tiny.tokenizer(), others, **accepting)
        assert (run / "journal.jsonl").read_bytes() == short
        assert finetune(tiny.model(), tiny.tokenizer(), rows, **given, exist="resume")["accepted_changes"] == []
    else:
        summary = finetune(tiny.model(), tiny.tokenizer(), others, **accepting)
        assert summary["accepted_changes"] == ["examples", "train"]
        assert kinds(run)[3] == "changes"
