"""A task by name from its files to a used model, and rows from wherever training takes them."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from pages import snippets

import twinpass
from twinpass.cli.main import main
from twinpass.cli.train import LEARNED_NOTHING
from twinpass.config.compose import build
from twinpass.config.load import load_config
from twinpass.config.tasks import ChoiceTask, CompletionTask
from twinpass.errors import ConfigError, DataError

LINES = (
    "HUM:ind Who is a great film ?\nLOC:city Where is a story ?\nHUM:gr Who is dull ?\nLOC:other Where is a film ?\n"
)
TASK: dict[str, Any] = {"kind": "named", "name": "trec", "path": "TREC"}
CLASSES = ("abbreviation", "entity", "description", "person", "location", "number")


def trained(folder: Path, **sections: Any) -> Path:
    (folder / "TREC").mkdir(parents=True)
    (folder / "TREC/train.txt").write_text(LINES)
    (folder / "TREC/test.txt").write_text(LINES.replace("film", "story"))
    config = tiny.config(folder, **{"task": TASK, "optimizer": {"steps": 2, "batch_size": 2}, **sections})
    tiny.tokenizer(*CLASSES).save_pretrained(folder / "model")
    assert main(["train", str(config), "--json"]) in (0, LEARNED_NOTHING)
    return folder / "run"


def printed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_from_a_folder_to_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path)
    assert printed(capsys)[-1]["held_out"] == 4
    test = tmp_path / "TREC/test.txt"
    assert main(["predict", str(run), str(test), "--json"]) == 0
    first = printed(capsys)
    assert [line["text"] for line in first[:2]] == ["Who is a great story ?", "Where is a story ?"]
    names = ["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"]
    assert all(list(line["prediction"]["probabilities"]) == names for line in first)
    rows = [{"text": line["text"]} for line in first]
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO("".join(json.dumps(row) + "\n" for row in rows).encode()))
    )
    (tmp_path / "TREC/train.txt").unlink()
    assert main(["predict", str(run), "-", "--json"]) == 0
    assert [line["prediction"] for line in printed(capsys)] == [line["prediction"] for line in first]
    answers = twinpass.load(run).predict(rows)
    assert [answer.answer for answer in answers] == [line["prediction"]["answer"] for line in first]


def test_in_python_it_is_the_same(tmp_path: Path) -> None:
    run = trained(tmp_path)
    own: dict[str, Any] = {
        "trainable": twinpass.Lora(rank=2, alpha=4.0),
        "estimator": twinpass.Spsa(probes=2),
        "optimizer": twinpass.Sgd(lr=1e-3, steps=2, batch_size=2),
        "epsilon": twinpass.ConstantEpsilon(value=1e-3),
    }
    task = {"name": "trec", "path": str(tmp_path / "TREC")}
    summary = twinpass.finetune(
        tiny.model(), tiny.tokenizer(*CLASSES), task=task, seed=3, eval_every=3, out=tmp_path / "python", **own
    )
    before = json.loads((run / "summary.json").read_text())
    assert summary["base_metric"] == before["base_metric"]
    assert summary["final_metric"] == before["final_metric"]
    again = twinpass.load(tmp_path / "python", model=tiny.model(), tokenizer=tiny.tokenizer(*CLASSES))
    rows = [{"text": "Who is dull ?"}]
    assert again.predict(rows) == twinpass.load(run).predict(rows)
    lines = [
        dict(zip(("coarse_label", "text"), (line.split(":")[0], line.split(" ", 1)[1]), strict=True))
        for line in LINES.splitlines()
    ]
    given = twinpass.finetune(
        tiny.model(), tiny.tokenizer(*CLASSES), lines, [], task={"name": "trec"}, out=tmp_path / "given", **own
    )
    assert (given["held_out"], given["steps"]) == (0, 2)


def test_the_python_on_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = snippets("docs/tasks.md", "python")
    monkeypatch.chdir(tmp_path)
    Path("data/RTE").mkdir(parents=True)
    row = {"premise": "a film", "hypothesis": "a story"}
    lines = [json.dumps({**row, "label": label}) for label in ("entailment", "not_entailment", "entailment")]
    Path("data/RTE/train.jsonl").write_text("\n".join(lines))
    names: dict[str, Any] = {"twinpass": twinpass, "model": tiny.model(), "tokenizer": tiny.tokenizer("Yes", "No")}
    exec(code, names)
    assert names["summary"]["held_out"] == 1


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        ({"name": "trek", "path": "a"}, {}, r"there is no task 'trek' \(did you mean 'trec'\?\)"),
        ({"name": "trec"}, {}, r"train: give rows, or a task that names them \(\[task\] path: is missing"),
        ({"name": "trec", "path": "a"}, {"prompt": "{text}", "shots": 1}, "prompt, shots: the task says what a row becomes"),
        ({"name": "trec", "path": "a", "text": "b"}, {}, r"\[task\] text: no such key"),
        (None, {"learning_rate": 1e-3}, r"learning_rate: there is no such argument; it belongs to the optimizer, such as"),
        (None, {"completion": "a", "prompt": "b", "rank": 2}, r"rank: .*such as trainable=twinpass.Lora"),
        (None, {"prompt": "{text}", "options": ["a", "b"], "trunkate": "left"}, r"trunkate: .*did you mean truncate\?"),
        (None, {"max_length": 64, "what": 1}, r"(?s)max_length: .*say window=N.*what: .*keys of the task are train, eval"),
        (None, {"prompt": "{text}", "options": ["a", "b"]}, r"train: give rows, or a task that names them"),
    ],
)  # fmt: skip
def test_what_finetune_refuses(task: Any, more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        twinpass.finetune(tiny.model(), tiny.tokenizer(), task=task, out=tmp_path / "run", **more)
    assert not (tmp_path / "run").exists()


def test_a_task_of_ones_own_needs_no_entry_point(tmp_path: Path) -> None:
    task = ChoiceTask(prompt="Review: {text}", suffix=" Sentiment:", options=(" bad", " good"))
    optimizer = twinpass.Sgd(lr=1e-3, steps=1, batch_size=2)
    summary = twinpass.finetune(
        tiny.model(),
        tiny.tokenizer(),
        tiny.rows(6),
        task=task,
        optimizer=optimizer,
        trainable=twinpass.Lora(),
        out=tmp_path / "run",
    )
    assert summary["metric_name"] == "accuracy"


def test_a_run_on_standard_input_is_used_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read is not there any more; how it was read is."""
    rows = "".join(json.dumps({**row, "label": ["bad", "good"][row["label"]]}) + "\n" for row in tiny.rows(10))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(rows.encode())))
    config = tiny.config(tmp_path, task={"kind": "auto", "train": "-"}, optimizer={"steps": 1, "batch_size": 2})
    assert main(["train", str(config), "--json"]) in (0, LEARNED_NOTHING)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    (tmp_path / "a1.jsonl").write_text('{"text": "fine"}\n')
    (tmp_path / "a2.csv").write_text("text,id\ndull,7\n")
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "a*.jsonl"), str(tmp_path / "a2.csv")]) == 0
    found = printed(capsys)
    assert [line["text"] for line in found] == ["fine", "dull"]
    assert all(list(line["prediction"]["probabilities"]) == ["bad", "good"] for line in found)


def test_conversations_are_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the assistant spoke last, its turn is what is to be written."""
    turns = [{"role": "user", "content": "a film"}, {"role": "assistant", "content": "fine"}]
    config = tiny.config(
        tmp_path, task={"kind": "auto", "train": "chat.jsonl"}, optimizer={"steps": 1, "batch_size": 2}
    )
    (tmp_path / "chat.jsonl").write_text(
        json.dumps({"messages": turns}) + "\n" + json.dumps({"messages": turns * 2}) + "\n"
    )
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{% if m.role == 'assistant' %}: {% endif %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}: {% endif %}"
    tokenizer.save_pretrained(tmp_path / "model")
    assert main(["train", str(config), "--json"]) in (0, LEARNED_NOTHING)
    asked = [turns, turns[:1], [*turns, {"role": "user", "content": "dull"}]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in asked))
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "rows.jsonl"), "--max-tokens", "3"]) == 0
    texts = [line["prediction"]["text"] for line in printed(capsys)]
    prompts = ["a film : ", "a film : ", "a film : fine dull : "]
    assert texts == twinpass.load(tmp_path / "run").generate(prompts, 3)


def test_answers_that_end_with_a_line_break_are_written_so_far(tmp_path: Path) -> None:
    template = CompletionTask(prompt="{a}", completion=" {b}\n", end=False)
    assert template.stop == ("\n",)
    assert CompletionTask(prompt="{a}", completion=" {b}\n").stop == ()
    assert CompletionTask(prompt="{a}", completion=" {b}", end=False).stop == ()


def test_predictions_need_no_label_and_measures_do(tmp_path: Path) -> None:
    run = trained(tmp_path)
    assert twinpass.load(run).predict([{"text": "Who ?"}])
    (tmp_path / "TREC/test.jsonl").write_text('{"text": "Who ?"}\n')
    config = tiny.config(tmp_path, task={**TASK, "path": "TREC/test.jsonl"})
    with pytest.raises(
        DataError, match=r"the task uses \{coarse_label\}, the row has only text; to train and to measure"
    ):
        build(load_config(config))
