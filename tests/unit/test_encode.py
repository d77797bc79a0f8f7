"""From rows to examples: bad rows are all named or all left out, long ones shortened and counted, some held out by a seed."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import tiny

from twinpass.config.encode import Encoded, encode
from twinpass.config.tasks import ChatTask, ChoiceTask, CompletionTask, TaskSettings
from twinpass.errors import DataError
from twinpass.model.trainable import Activated, Lora
from twinpass.task.activation import activation_points, common_suffix
from twinpass.task.example import Example
from twinpass.task.rows import Item, Row
from twinpass.task.split import split

MODEL, TOKENIZER = tiny.model(), tiny.tokenizer()


def rows(*labels: object, text: str = "a fine film") -> list[Item]:
    return [Row({"text": text, "label": label}, f"a.jsonl, row {i}") for i, label in enumerate(labels, 1)]


def task(**keys: Any) -> ChoiceTask:
    return ChoiceTask(**{"prompt": "Review: {text}", "suffix": " Sentiment:", "options": (" bad", " good"), **keys})


def encoded(chosen: TaskSettings, train: Sequence[Item], held: Sequence[Item] | None = (), seed: int = 0) -> Encoded:
    return encode(chosen, train, held, Lora(), MODEL, TOKENIZER, seed)


# --- bad rows


def test_all_bad_rows_are_named_at_once() -> None:
    unread = DataError("a.jsonl, row 9: not valid JSON")
    with pytest.raises(DataError) as caught:
        encoded(task(), [*rows(1, "x", 0, None), unread], rows("y"))
    first, *lines, last = str(caught.value).splitlines()
    assert first == "4 of 6 rows cannot be used:"
    places = [
        "a.jsonl, row 9: not valid JSON",
        "a.jsonl, row 2: label",
        "a.jsonl, row 4: label",
        "a.jsonl, row 1: label",
    ]
    assert [line.startswith(f"  - {place}") for line, place in zip(lines, places, strict=True)] == [True] * 4
    assert last == 'mend them, or leave them out with task.on_error = "skip"'


def test_one_bad_row_is_said_in_a_line() -> None:
    with pytest.raises(
        DataError, match=r"^a\.jsonl, row 2: label is 'x', expected 0 to 1 or one of \[' bad', ' good'\]$"
    ):
        encoded(task(), rows(1, "x"))


def test_of_many_bad_rows_twenty_are_shown_and_the_rest_counted() -> None:
    with pytest.raises(DataError) as caught:
        encoded(task(), rows(1, *["x"] * 33))
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 20 + 1 + 1
    assert lines[0] == "33 of 34 rows cannot be used:"
    assert lines[-2] == "  - and 13 more"
    with pytest.raises(DataError) as caught:
        encoded(task(), rows(1, *["x"] * 20))
    assert len(str(caught.value).splitlines()) == 1 + 20 + 1


@pytest.mark.parametrize(
    ("task", "row", "reason"),
    [
        (
            CompletionTask(prompt="{text}", completion=" {text}", end=True),
            {"text": "fine"},
            "the tokenizer has no end-of-text token; set task.end = false",
        ),
        (
            ChatTask(messages="turns"),
            {"turns": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "rows hold messages, and the tokenizer has no chat template; take the one of an instruct model, or name the fields in "
            "task.prompt and task.completion",
        ),
    ],
)
def test_what_is_no_fault_of_a_row_is_said_once(task: Any, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError) as caught:
        encoded(task, [Row(row, f"a.jsonl, row {i}") for i in range(3)])
    assert str(caught.value) == reason


def test_bad_rows_can_be_left_out() -> None:
    found = encoded(task(on_error="skip"), [DataError("a.jsonl, row 9: no"), *rows(1, "x", 0)], rows(None, 1))
    assert [example.label for example in found.train] == [1, 0]
    assert [example.label for example in found.held_out] == [1]
    assert found.notes[0] == "3 of 6 rows are left out; a.jsonl, row 9: no"


@pytest.mark.parametrize("on_error", ["stop", "skip"])
@pytest.mark.parametrize(
    "items", [rows("x", "y"), [DataError("a.jsonl, row 1: no"), DataError("row 2")]], ids=["label", "read"]
)
def test_where_no_row_can_be_used_there_is_no_run(items: list[Item], on_error: str) -> None:
    with pytest.raises(DataError, match="2 of 2 rows cannot be used"):
        encoded(task(on_error=on_error), items)


# --- long rows


def test_long_rows_are_counted() -> None:
    train = [*rows(1, 0), *rows(1, text="a dull story a fine film")]
    with pytest.raises(DataError, match="9 tokens, but the model's window holds 8"):
        encoded(task(window=8), train)
    for side, first in (("left", TOKENIZER("a")), ("right", TOKENIZER("Review:"))):
        found = encoded(task(window=8, truncate=side), train)
        assert found.notes == (f"1 rows are shortened on the {side} to 8 tokens",)
        assert [len(example.prompt) for example in found.train] == [5, 5, 7]
        assert found.train[2].prompt[0] == first["input_ids"][0]


def test_a_window_beyond_the_models_is_the_models() -> None:
    with pytest.raises(DataError, match=r"tokens, but the model's window holds \d+"):
        encoded(task(window=10**6), rows(1, text="fine " * 3000))


# --- held out


def held_rows(found: Encoded) -> set[str]:
    return {example.place for example in found.held_out}


@pytest.mark.parametrize(
    ("keys", "count"), [({}, 10), ({"eval_fraction": 0.25}, 25), ({"eval_rows": 7}, 7), ({"eval_fraction": 0.0}, 0)]
)
def test_a_share_of_the_rows_is_held_out(keys: dict[str, Any], count: int) -> None:
    found = encoded(task(**keys), rows(*[i % 2 for i in range(100)]), None)
    assert (len(found.train), len(found.held_out)) == (100 - count, count)
    assert not held_rows(found) & {example.place for example in found.train}
    if count:
        assert found.notes[0] == f"{count} of 100 rows are held out by seed 0, of each label its share"


def test_held_out_rows_that_are_trained_on_are_counted() -> None:
    """By what a model reads of them, whatever else a row says."""
    found = encoded(task(), rows(0, 1), [*rows(1), *rows(0, text="a story")])
    assert found.notes == (
        "1 of 2 held-out rows are rows to train on, too; what is measured on them says little of new ones",
    )


def test_rows_that_were_held_out_from_the_beginning_stay() -> None:
    found = encoded(task(), rows(0, 1), rows(1, text="a story"))
    assert (len(found.train), len(found.held_out), found.notes) == (2, 1, ())


def test_the_seed_says_which_rows_and_nothing_else() -> None:
    train = rows(*[i % 2 for i in range(40)])
    first, again, other = (held_rows(encoded(task(), train, None, seed)) for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("counts", "held"), [((90, 10), (9, 1)), ((50, 30, 20), (5, 3, 2)), ((96, 4), (10, 0)), ((7, 7, 6), (1, 1, 0))]
)
def test_each_label_gives_its_share(counts: tuple[int, ...], held: tuple[int, ...], seed: int) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    train, out = split(labels, labels, sum(held), seed)
    assert Counter(out) == Counter(dict(enumerate(held))) - Counter()
    assert Counter(train) + Counter(out) == Counter(labels)
    assert train == sorted(train)


def test_the_rows_to_train_on_are_as_many_as_were_asked_for() -> None:
    chosen = task(train_rows=90)
    assert chosen.wanted(splits=True) == 100
    assert chosen.wanted(splits=False) == 90
    found = encoded(chosen, rows(*[i % 2 for i in range(100)]), None)
    assert (len(found.train), len(found.held_out)) == (90, 10)


def test_shots_are_not_held_out() -> None:
    train = [*rows(*[i % 2 for i in range(20)]), *rows(1, text="great story")]
    found = encoded(task(shots=1, eval_rows=5), train, None)
    assert (len(found.train), len(found.held_out)) == (15, 5)
    shot = TOKENIZER("Review: great story Sentiment: good")["input_ids"]
    assert all(list(example.prompt[: len(shot)]) == shot for example in (*found.train, *found.held_out))


def test_more_rows_than_there_are_cannot_be_held_out() -> None:
    with pytest.raises(
        DataError, match=r"3 of 3 rows are to be held out, and none is left to train on; lower task\.eval_rows"
    ):
        encoded(task(eval_rows=3), rows(0, 1, 1), None)


# --- the activation point


def test_a_suffix_that_differs_from_row_to_row_cannot_activate() -> None:
    train = [
        Row({"text": "a", "ask": ask, "label": 1}, f"a.jsonl, row {i}") for i, ask in enumerate(("film", "story"), 1)
    ]
    with pytest.raises(DataError, match=r"a\.jsonl, row 2: the suffix becomes tokens .* or holds fields"):
        encode(task(suffix=" {ask} :"), train, [], Activated(), MODEL, TOKENIZER)


def test_line_breaks_that_become_tokens_with_the_suffix_in_some_rows_do_not_matter() -> None:
    """As where a prompt ends with an empty field and a line break, which many tokenizers join with the one before."""
    joined, apart = Example((7, 5, 5, 1, 2), ((3,),), 0, 1), Example((7, 5, 1, 2), ((3,),), 0, 2)
    for examples in ([joined, apart], [apart, joined]):
        suffix = common_suffix(examples)
        assert suffix == (1, 2)
        assert {len(each.prompt) - each.suffix_start for each in activation_points(examples, suffix)} == {2}
    with pytest.raises(
        DataError, match=r'other: the suffix becomes tokens \[1, 4\] here .* train trainable.kind = "lora"'
    ):
        common_suffix([apart, Example((7, 1, 4), ((3,),), 0, 1, "other")])
