"""Every task by name reads its original files and becomes MeZO's prompts, options and labels: excerpts and what becomes of them, by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from contracts import named_task_contract
from excerpts import TABLES
from published import Excerpt, Made

from twinpass.config.load import parse
from twinpass.config.named import NAMED, TaskByName
from twinpass.errors import ConfigError, DataError
from twinpass.objective.choice import Choice
from twinpass.objective.completion import Completion
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.rows import Item, Row
from twinpass.task.template import TextTemplate


def written(folder: Path, excerpt: Excerpt) -> Path:
    for name, text in excerpt.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def made_of(template: TextTemplate, items: Sequence[Item]) -> list[Made]:
    rows = [item for item in items if isinstance(item, Row)]
    assert len(rows) == len(items), items
    return [(template.prompt_of(row), tuple(template.answers(row)[0]), template.answers(row)[1]) for row in rows]


def test_every_name_has_an_excerpt() -> None:
    assert list(TABLES) == list(NAMED)


@pytest.mark.parametrize("name", TABLES)
def test_it_keeps_its_contract(name: str, tmp_path: Path) -> None:
    named_task_contract(TaskByName(name).named, written(tmp_path, TABLES[name]))


@pytest.mark.parametrize("name", TABLES)
def test_its_original_files_become_its_prompts(name: str, tmp_path: Path) -> None:
    excerpt = TABLES[name]
    task = TaskByName(name, path=str(written(tmp_path, excerpt)))
    train, held_out = task.rows()
    assert held_out is not None
    reading = task.reading([])
    template = reading.template
    assert isinstance(template, TextTemplate)
    assert made_of(template, [*train, *held_out]) == [(p, tuple(o), label) for p, o, label in excerpt.made]
    assert len(train) == excerpt.train
    assert reading.objective == (Choice(score="mean") if isinstance(template, ChoiceTemplate) else Completion())
    assert template.suffix == excerpt.suffix
    assert task.ends_alike == bool(excerpt.suffix)
    (one,) = {key for key in excerpt.files if str(tmp_path / key) == task.sources()[0][0]}
    alone = TaskByName(
        name, path=str(tmp_path / one), train_rows=1, eval_rows=excerpt.train - 1 or None, eval_fraction=0.0
    )
    assert alone.sources() == ((str(tmp_path / one),), ())
    assert len(alone.rows()[0]) == excerpt.train
    assert all(str(tmp_path) in item.place for item in train if isinstance(item, Row))


@pytest.mark.parametrize("name", [name for name, excerpt in TABLES.items() if excerpt.elsewhere])
def test_rows_of_hugging_face_become_the_same(name: str) -> None:
    task = TaskByName(name)
    template: Any = task.reading([]).template
    assert made_of(template, list(task.within([Row(dict(TABLES[name].elsewhere), "row 1")]))) == [
        (TABLES[name].made[0][0], tuple(TABLES[name].made[0][1]), TABLES[name].made[0][2])
    ]


@pytest.mark.parametrize("name", TABLES)
def test_rows_need_not_say_what_is_right(name: str, tmp_path: Path) -> None:
    """They are to be predicted: of what was published without labels."""
    task = TaskByName(name, path=str(written(tmp_path, TABLES[name])))
    template = task.reading([]).template
    lacking = [
        Row(
            {
                key: value
                for key, value in item.fields.items()
                if key not in ("label", "coarse_label", "answers", "Class Index")
            },
            "row 1",
        )
        for item in task.rows()[0]
        if isinstance(item, Row)
    ]
    known = {word for _, options, _ in TABLES[name].made for option in options for word in option.split()}
    tokenizer = tiny.tokenizer(*sorted(known - set(tiny.WORDS)))
    for row, (prompt, _, _) in zip(lacking, TABLES[name].made, strict=False):
        if isinstance(template, ChoiceTemplate):
            assert template.question(row, tokenizer).prompt
        assert isinstance(template, TextTemplate)
        assert template.prompt_of(row) == prompt


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("trec", "train.txt", "HUM:ind Who ?\nWho sang ?\n", "row 2: expected a line such as 'NUM:dist How far"),
        ("sst5", "sentiment-train", "5 so good\n", "row 1: expected a line such as '4 a fine film"),
        ("sst2", "train.tsv", "a film\t1\t2\n", "row 1: the header names 2 columns"),
        (
            "multirc",
            "train.jsonl",
            '{"passage": {"text": "a", "questions": 3}}',
            "row 1: questions is 3, expected an array of objects",
        ),
        (
            "squad",
            "train.json",
            '{"data": [{"title": "a", "paragraphs": [1]}]}',
            r"row 1: paragraphs is \[1\], expected an array",
        ),
    ],
)
def test_files_that_are_written_otherwise(name: str, file: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    train, held_out = TaskByName(name, path=str(tmp_path)).rows()
    assert held_out is None
    (fault,) = (item for item in train if isinstance(item, DataError))
    assert fault.args
    with pytest.raises(DataError, match=message):
        raise fault


def test_old_files_may_be_latin(tmp_path: Path) -> None:
    (tmp_path / "train_5500.label").write_bytes("ENTY:other What is a caf\u00e9 ?\n".encode("latin-1"))
    (item,) = TaskByName("trec", path=str(tmp_path)).rows()[0]
    assert isinstance(item, Row)
    assert item.fields["text"] == "What is a caf\u00e9 ?"
    (tmp_path / "sentiment-train").write_bytes(b"4 caf\xe9\n")
    with pytest.raises(DataError, match=r"sentiment-train: not utf-8 .*; save the file as UTF-8"):
        TaskByName("sst5", path=str(tmp_path)).rows()


def test_a_folder_without_its_files_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "val.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"there is no train\.jsonl to train 'rte' on, but val\.jsonl; name the file"):
        TaskByName("rte", path=str(tmp_path)).rows()
    with pytest.raises(DataError, match=r"there is no such folder or file; task\.path"):
        TaskByName("rte", path=str(tmp_path / "none")).rows()
    assert TaskByName("rte", path=str(tmp_path / "val.jsonl")).sources() == ((str(tmp_path / "val.jsonl"),), ())


def test_a_configuration_needs_the_name_alone(tmp_path: Path) -> None:
    values: dict[str, Any] = {"model": {"path": "some/model"}, "run": {"out": "run"}}
    named = {"name": "rte", "path": "data"}
    task = parse({**values, "task": named}, "a.toml", tmp_path).task
    assert task == TaskByName("rte", path=str(tmp_path / "data"))
    copa = {**values, "task": {"name": "copa", "path": "data"}}
    with pytest.raises(ConfigError, match=r"those of 'copa' do not; set \"lora\", \"full\" or \"layers\""):
        parse({**copa, "trainable": {"kind": "informed"}}, "a.toml", tmp_path)
    alone = parse(copa, "a.toml", tmp_path)
    assert alone.task.source == f"copa from {tmp_path}/data"
    assert alone.values["trainable"]["kind"] == "lora"
    with pytest.raises(
        ConfigError, match=r"\[task\] name: there is no task 'rté' \(did you mean 'rte'\?\); choose from sst2, "
    ):
        parse({**values, "task": {"name": "rté"}}, "a.toml", tmp_path)
    with pytest.raises(ConfigError, match=r"\[task\] prompt: no such key"):
        parse({**values, "task": {**named, "prompt": "{a}"}}, "a.toml", tmp_path)


def test_names_and_places_that_do_not_fit() -> None:
    for name in ("RTE", "SST-2", "Ag_News"):
        with pytest.raises(
            ValueError,
            match=f"there is no task '{name}' \\(did you mean '{name.lower().replace('-', '').replace('_', '')}'",
        ):
            TaskByName(name)
    with pytest.raises(ValueError, match="path: give either the path"):
        TaskByName("rte", path="a", train=("b.jsonl",))
    assert TaskByName("rte").problems() == ["[task] path: is missing; name the folder with the task's files"]


def test_a_suffix_goes_behind_the_tasks_own_prompt() -> None:
    row = Row({"sentence": "a film", "label": 1}, "row 1")
    template: Any = TaskByName("sst2", suffix=" {{ so }}:").reading([]).template
    assert template.prompt_of(row) == "a film It was {{ so }}:"
    assert template.suffix.endswith("}}")
    assert TaskByName("copa", suffix="Answer:").ends_alike
