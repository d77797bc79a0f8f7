"""Shots: rows that stand solved in front of every prompt."""

from pathlib import Path
from typing import Any

import files
import pytest
from files import Write
from templates import BAD, GOOD, IT, MOOD, REVIEW, WAS, WORDS, encode, row, template, words

from twinpass.config.encode import _demonstrated
from twinpass.config.tasks import ChoiceTask
from twinpass.errors import DataError
from twinpass.task.example import Example
from twinpass.task.rows import Row
from twinpass.task.template import Template

write = files.write


def test_shots_stand_solved_in_front_of_every_prompt() -> None:
    chosen = template().with_shots([row(1), row("bad", text="was")])
    solved = "Review: it was\nMood: good\n\nReview: was\nMood: bad\n\n"
    assert chosen.prompt == solved + "Review: {text}\n"
    assert (chosen.suffix, chosen.options, chosen.fields) == ("Mood:", (" bad", " good"), ("text",))
    example = encode(chosen, row(0, text="it"), words(*WORDS))
    shots = (REVIEW, IT, WAS, MOOD, GOOD, REVIEW, WAS, MOOD, BAD)
    assert example == Example((*shots, REVIEW, IT, MOOD), ((BAD,), (GOOD,)), 0, len(shots) + 2)


def test_no_shots_change_nothing() -> None:
    assert template().with_shots([]) == template()


def test_braces_in_a_shot_are_text() -> None:
    """A row may hold what looks like a field, or half of one."""
    chosen = template(prompt="{{x}} {text}\n").with_shots([row(text="{y} { }}", label=0)])
    assert chosen.fields == ("text",)
    tokenizer = words("{x}", "{y}", "{", "}}", "Mood:", "bad", "it")
    assert encode(chosen, row(text="it"), tokenizer).prompt == (2, 3, 4, 5, 6, 7, 2, 8, 6)


def test_braces_in_options_and_suffixes_of_shots_are_written_once() -> None:
    chosen = template(prompt="{text}", suffix=" {{Mood}}:", options=(" {{bad}}", " good")).with_shots([row(0)])
    assert chosen.prompt == "it was {{Mood}}: {{bad}}\n\n{text}"


def test_fields_of_a_shot_fill_its_suffix_and_options() -> None:
    chosen = template(prompt="{text}", suffix=" {ask}:", options=(" {a}", " {b}"))
    shot = row(1, ask="which", a="red", b="blue")
    assert chosen.with_shots([shot]).prompt == "it was which: blue\n\n{text}"


@pytest.mark.parametrize(
    ("shot", "message"),
    [
        (row("great"), r"a\.jsonl, row 7: label is 'great', expected 0 to 1 or one of"),
        (row(text=None), r"a\.jsonl, row 7: the prompt uses \{text\}, which is null"),
        (row(text=" "), r"a\.jsonl, row 7: the prompt is empty"),
        (Row({"label": 0}, "a.jsonl, row 7"), r"a\.jsonl, row 7: the prompt uses \{text\}, the row has only label"),
    ],
)
def test_a_shot_that_cannot_be_used_names_its_row(shot: Row, message: str) -> None:
    with pytest.raises(DataError, match=message):
        template().with_shots([row(), shot])


def test_shots_take_part_of_the_window() -> None:
    chosen = template().with_shots([row(1)])
    assert len(encode(chosen, row(), words(*WORDS), 10).prompt) == 9
    with pytest.raises(DataError, match="10 tokens, but the model's window holds 9"):
        encode(chosen, row(), words(*WORDS), 9)


def task(train: Path, **keys: Any) -> ChoiceTask:
    return ChoiceTask(prompt="{text}", options=(" bad", " good"), train=(str(train),), eval=(str(train),), **keys)


def training_rows(chosen: ChoiceTask) -> tuple[list[Row], Template]:
    rows = [item for item in chosen.rows()[0] if isinstance(item, Row)]
    return _demonstrated(chosen, rows, chosen, splits=False)


@pytest.fixture
def five(write: Write) -> Path:
    """Rows "a" to "e", whose labels take turns."""
    return write("five.jsonl", "".join(f'{{"text": "{text}", "label": {i % 2}}}\n' for i, text in enumerate("abcde")))


@pytest.mark.parametrize(
    ("keys", "texts", "prompt"),
    [
        ({}, "abcde", "{text}"),
        ({"train_rows": 2}, "ab", "{text}"),
        ({"shots": 2}, "abc", "d good\n\ne bad\n\n{text}"),
        ({"shots": 2, "train_rows": 1}, "a", "d good\n\ne bad\n\n{text}"),
        ({"shots": 2, "train_rows": 3}, "abc", "d good\n\ne bad\n\n{text}"),
        ({"shots": 4}, "a", "b good\n\nc bad\n\nd good\n\ne bad\n\n{text}"),
    ],
)
def test_the_last_rows_are_shots_and_the_first_are_trained_on(
    five: Path, keys: dict[str, int], texts: str, prompt: str
) -> None:
    rows, chosen = training_rows(task(five, **keys))
    assert [row.fields["text"] for row in rows] == list(texts)
    assert isinstance(chosen, ChoiceTask)
    assert chosen.prompt == prompt


@pytest.mark.parametrize(
    ("keys", "wanted"), [({"shots": 5}, 1), ({"shots": 9}, 1), ({"shots": 3, "train_rows": 3}, 3)], ids=str
)
def test_rows_to_train_on_are_never_shots(five: Path, keys: dict[str, int], wanted: int) -> None:
    message = (
        rf"{wanted} rows to train on and {keys['shots']} shots are more than the 5 in the file; lower task\.train_rows"
    )
    with pytest.raises(DataError, match=message):
        training_rows(task(five, **keys))
