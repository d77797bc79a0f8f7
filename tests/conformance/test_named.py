"""Every task by name reads its original files and becomes MeZO's prompts, options and labels: excerpts and what becomes of them, by hand."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny
from contracts import named_task_contract

from twinpass.config.load import parse
from twinpass.config.named import NAMED, TaskByName
from twinpass.errors import ConfigError, DataError
from twinpass.objective.choice import Choice
from twinpass.objective.completion import Completion
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.rows import Category, Item, Row
from twinpass.task.template import TextTemplate


def lines(*objects: Mapping[str, Any]) -> str:
    return "".join(json.dumps(each) + "\n" for each in objects)


Made = tuple[str, Sequence[str], int]
"""A prompt, its answers, and which is right."""


@dataclass(frozen=True)
class Excerpt:
    """Files as they were published, what becomes of their rows, and how many of all come from the first.

    ``elsewhere`` is the first row in another form: as Hugging Face datasets have it.
    """

    files: Mapping[str, str]
    made: Sequence[Made]
    train: int
    suffix: str
    elsewhere: Mapping[str, Any] = field(default_factory=dict)


NO_YES = ("No", "Yes")
DUCKS = "Ducks swim. They eat weed.\nQuestion: What do ducks do?\nI found this answer "
TABLES = {
    "sst2": Excerpt(
        {
            "train.tsv": 'a fine film \t1\nso "dull" it hurts\t0\n',
            "dev.tsv": "sentence\tlabel\nno story , no film\t0\n",
        },
        [
            ("a fine film It was", (" terrible", " great"), 1),
            ('so "dull" it hurts It was', (" terrible", " great"), 0),
            ("no story , no film It was", (" terrible", " great"), 0),
        ],
        2,
        " It was",
        {"sentence": "a fine film", "label": Category(1, "positive")},
    ),
    "sst5": Excerpt(
        {"stsa.fine.train": "4 a fine film .\n0 dull .\n", "stsa.fine.dev": "2 a crème film .\n"},
        [
            ("a fine film . It was", (" terrible", " bad", " okay", " good", " great"), 4),
            ("dull . It was", (" terrible", " bad", " okay", " good", " great"), 0),
            ("a crème film . It was", (" terrible", " bad", " okay", " good", " great"), 2),
        ],
        2,
        " It was",
    ),
    "rte": Excerpt(
        {
            "train.jsonl": lines(
                {"premise": "Ann swam.", "hypothesis": "Ann moved.", "label": "entailment", "idx": 0},
                {"premise": "Ann swam.", "hypothesis": "Ann sang.", "label": "not_entailment", "idx": 1},
            ),
            "val.jsonl": lines(
                {"premise": "It {rained}.", "hypothesis": "It was wet.", "label": "entailment", "idx": 0}
            ),
        },
        [
            ('Ann swam.\nDoes this mean that "Ann moved." is true? Yes or No?\n', ("Yes", "No"), 0),
            ('Ann swam.\nDoes this mean that "Ann sang." is true? Yes or No?\n', ("Yes", "No"), 1),
            ('It {rained}.\nDoes this mean that "It was wet." is true? Yes or No?\n', ("Yes", "No"), 0),
        ],
        2,
        " is true? Yes or No?\n",
        {"premise": "Ann swam.", "hypothesis": "Ann moved.", "label": Category(0, "entailment")},
    ),
    "cb": Excerpt(
        {
            "train.jsonl": lines(
                {"premise": "Ann said it rained.", "hypothesis": "it rained", "label": "neutral", "idx": 0},
                {"premise": "Ann knew it rained.", "hypothesis": "it rained", "label": "entailment", "idx": 1},
            ),
            "val.jsonl": lines(
                {"premise": "It never rained.", "hypothesis": "it rained", "label": "contradiction", "idx": 0}
            ),
        },
        [
            (
                'Suppose Ann said it rained. Can we infer that "it rained"? Yes, No, or Maybe?\n',
                ("Yes", "No", "Maybe"),
                2,
            ),
            (
                'Suppose Ann knew it rained. Can we infer that "it rained"? Yes, No, or Maybe?\n',
                ("Yes", "No", "Maybe"),
                0,
            ),
            ('Suppose It never rained. Can we infer that "it rained"? Yes, No, or Maybe?\n', ("Yes", "No", "Maybe"), 1),
        ],
        2,
        " Yes, No, or Maybe?\n",
        {"premise": "Ann said it rained.", "hypothesis": "it rained", "label": Category(2, "neutral")},
    ),
    "boolq": Excerpt(
        {
            "train.jsonl": lines(
                {"question": "do ducks swim", "passage": "Duck -- Ducks swim.", "idx": 0, "label": True},
                {"question": "is it so?", "passage": "It is not so.", "idx": 1, "label": False},
            ),
            "val.jsonl": lines({"question": "can 2 be 3", "passage": "Two is two.", "idx": 0, "label": False}),
        },
        [
            ("Duck -- Ducks swim. Do ducks swim?\n", NO_YES, 1),
            ("It is not so. Is it so?\n", NO_YES, 0),
            ("Two is two. Can 2 be 3?\n", NO_YES, 0),
        ],
        2,
        "\n",
        {"question": "do ducks swim", "passage": "Duck -- Ducks swim.", "label": Category(1, "True")},
    ),
    "wsc": Excerpt(
        {
            "train.jsonl": lines(
                {
                    "text": "Ann met Bea. She sang.",
                    "target": {"span2_index": 3, "span1_index": 2, "span1_text": "Bea", "span2_text": "She"},
                    "idx": 0,
                    "label": True,
                }
            ),
            "val.jsonl": lines(
                {
                    "text": "The cup did not fit the box, as it was big.",
                    "target": {"span2_index": 8, "span1_index": 5, "span1_text": "the box", "span2_text": "it"},
                    "idx": 0,
                    "label": False,
                }
            ),
        },
        [
            (
                'Ann met Bea. She sang.\nIn the previous sentence, does the pronoun "she" refer to Bea? Yes or No?\n',
                NO_YES,
                1,
            ),
            (
                'The cup did not fit the box, as it was big.\nIn the previous sentence, does the pronoun "it" refer to the box? '
                "Yes or No?\n",
                NO_YES,
                0,
            ),
        ],
        1,
        " Yes or No?\n",
        {"text": "Ann met Bea. She sang.", "span1_text": "Bea", "span2_text": "She", "label": 1},
    ),
    "wic": Excerpt(
        {
            "train.jsonl": lines(
                {"word": "bank", "sentence1": "A bank lends.", "sentence2": "We sat on the bank.", "idx": 0}
                | {"label": False, "start1": 2, "start2": 14, "end1": 6, "end2": 18, "version": 1.1}
            ),
            "val.jsonl": lines(
                {"word": "run", "sentence1": "Run!", "sentence2": "She ran.", "idx": 0}
                | {"label": True, "start1": 0, "start2": 4, "end1": 3, "end2": 7, "version": 1.1}
            ),
        },
        [
            (
                'Does the word "bank" have the same meaning in these two sentences? Yes, No?\nA bank lends.\nWe sat on the bank.\n',
                NO_YES,
                0,
            ),
            ('Does the word "run" have the same meaning in these two sentences? Yes, No?\nRun!\nShe ran.\n', NO_YES, 1),
        ],
        1,
        "\n",
        {"word": "bank", "sentence1": "A bank lends.", "sentence2": "We sat on the bank.", "label": 0},
    ),
    "multirc": Excerpt(
        {
            "train.jsonl": lines(
                {
                    "idx": 0,
                    "version": 1.1,
                    "passage": {
                        "text": "Ducks swim. They eat weed.",
                        "questions": [
                            {
                                "question": "What do ducks do?",
                                "idx": 0,
                                "answers": [
                                    {"text": "Swim", "idx": 0, "label": 1},
                                    {"text": "Sing.", "idx": 1, "label": 0},
                                ],
                            },
                        ],
                    },
                }
            ),
            "val.jsonl": lines(
                {
                    "idx": 0,
                    "passage": {
                        "text": "It rained.",
                        "questions": [
                            {"question": "Was it dry?", "answers": [{"text": "No", "label": 1}]},
                            {"question": "Was it wet?", "answers": [{"text": "No", "label": 0}]},
                        ],
                    },
                }
            ),
        },
        [
            (f'{DUCKS}"Swim". Is that correct? Yes or No?\n', NO_YES, 1),
            (f'{DUCKS}"Sing.". Is that correct? Yes or No?\n', NO_YES, 0),
            (
                'It rained.\nQuestion: Was it dry?\nI found this answer "No". Is that correct? Yes or No?\n',
                NO_YES,
                1,
            ),
            (
                'It rained.\nQuestion: Was it wet?\nI found this answer "No". Is that correct? Yes or No?\n',
                NO_YES,
                0,
            ),
        ],
        2,
        " Is that correct? Yes or No?\n",
        {"paragraph": "Ducks swim. They eat weed.", "question": "What do ducks do?", "answer": "Swim", "label": 1},
    ),
    "copa": Excerpt(
        {
            "train.jsonl": lines(
                {
                    "premise": "It rained.",
                    "choice1": "The street got wet.",
                    "choice2": "I sang.",
                    "question": "effect",
                    "label": 0,
                    "idx": 0,
                },
                {"premise": "I slept. ", "choice1": "I was tired.", "choice2": "It rained.", "question": "cause"}
                | {"label": 1, "idx": 1},
            ),
            "val.jsonl": lines(
                {"premise": "She sang!", "choice1": "Ann", "choice2": "Bea did.", "question": "cause", "label": 0}
            ),
        },
        [
            ("It rained so", (" the street got wet.", " I sang."), 0),
            ("I slept because", (" I was tired.", " it rained."), 1),
            ("She sang! because", (" ann", " bea did."), 0),
        ],
        2,
        "",
    ),
    "squad": Excerpt(
        {
            "train-v1.1.json": json.dumps(
                {
                    "data": [
                        {
                            "title": "Ducks_of_Rome",
                            "paragraphs": [
                                {
                                    "context": "Ducks swim in Rome.",
                                    "qas": [
                                        {
                                            "answers": [
                                                {"answer_start": 14, "text": "Rome"},
                                                {"answer_start": 11, "text": "in Rome"},
                                            ],
                                            "question": " Where do ducks swim?",
                                            "id": "56",
                                        },
                                        {
                                            "answers": [{"answer_start": 0, "text": "Ducks"}],
                                            "question": "What swims?",
                                            "id": "57",
                                        },
                                    ],
                                }
                            ],
                        }
                    ],
                    "version": "1.1",
                }
            ),
            "dev-v1.1.json": json.dumps(
                {
                    "data": [
                        {
                            "title": "Rain",
                            "paragraphs": [
                                {
                                    "context": "It fell.",
                                    "qas": [{"answers": [{"text": "It"}], "question": "What?", "id": "a"}],
                                }
                            ],
                        }
                    ]
                }
            ),
        },
        [
            (
                "Title: Ducks_of_Rome\nContext: Ducks swim in Rome.\nQuestion: Where do ducks swim?\nAnswer:",
                (" Rome\n",),
                0,
            ),
            ("Title: Ducks_of_Rome\nContext: Ducks swim in Rome.\nQuestion: What swims?\nAnswer:", (" Ducks\n",), 0),
            ("Title: Rain\nContext: It fell.\nQuestion: What?\nAnswer:", (" It\n",), 0),
        ],
        2,
        "Answer:",
        {
            "title": "Ducks_of_Rome",
            "context": "Ducks swim in Rome.",
            "question": "Where do ducks swim?",
            "answers": {"text": ["Rome"], "answer_start": [14]},
        },
    ),
    "trec": Excerpt(
        {
            "train_5500.label": "HUM:ind Who sang ?\nABBR:exp What is  NaCl ?\n",
            "TREC_10.label": "NUM:date When did it rain ?\r\n",
        },
        [
            (
                "Question: Who sang ?\nType:",
                kinds := (" abbreviation", " entity", " description", " person", " location", " number"),
                3,
            ),
            ("Question: What is  NaCl ?\nType:", kinds, 0),
            ("Question: When did it rain ?\nType:", kinds, 5),
        ],
        2,
        "Type:",
        {"text": "Who sang ?", "coarse_label": Category(3, "HUM"), "fine_label": Category(12, "HUM:ind")},
    ),
    "agnews": Excerpt(
        {
            "train.csv": '"3","Oil, again","It said ""up"".\nOr down."\n"1","Rain","It rained."\n',
            "test.csv": "Class Index,Title,Description\n4,Chips,They shrank.\n",
        },
        [
            (
                'Oil, again\nIt said "up".\nOr down.\nTopic:',
                topics := (" world", " sports", " business", " technology"),
                2,
            ),
            ("Rain\nIt rained.\nTopic:", topics, 0),
            ("Chips\nThey shrank.\nTopic:", topics, 3),
        ],
        2,
        "Topic:",
    ),
}


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
    for row, (prompt, _, _) in zip(lacking, TABLES[name].made, strict=False):
        if isinstance(template, ChoiceTemplate):
            assert template.question(row, tiny.tokenizer()).prompt
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
