"""Forms of rows that are known by their fields: what they become, written out by hand."""

import re
from typing import Any

import pytest
import tiny
from conversing import CHATML, assistant, chatting, encoded, user, words

from twinpass.config.encode import encode
from twinpass.config.tasks import AutoTask, ChatTask
from twinpass.errors import DataError
from twinpass.model.trainable import Activated, Lora
from twinpass.objective.choice import Choice
from twinpass.objective.completion import Completion
from twinpass.task.forms import FORMS
from twinpass.task.rows import Category, Item, Row

MODEL = tiny.model()


def test_prompt_and_completion() -> None:
    found, tokenizer = encoded({"prompt": "Review: a film", "completion": " fine story"})
    (example,) = found.train
    assert words(tokenizer, example.prompt) == "Review: a film"
    assert words(tokenizer, example.options[0]) == "fine story <end>"
    assert isinstance(found.objective, Completion)
    assert found.notes == ("rows have the form prompt, completion",)


def test_every_turn_of_the_assistant_is_an_answer() -> None:
    messages = [user("a film"), assistant("fine"), user("a story"), assistant("dull dull")]
    found, tokenizer = encoded({"messages": messages}, trainable=Activated())
    first, second = found.train
    assert words(tokenizer, first.prompt) == "<s> <im> user a film <end> <im> assistant"
    assert words(tokenizer, first.options[0]) == "fine <end>"
    assert words(tokenizer, second.prompt) == (
        "<s> <im> user a film <end> <im> assistant fine <end> <im> user a story <end> <im> assistant"
    )
    assert words(tokenizer, second.options[0]) == "dull dull <end>"
    assert words(tokenizer, found.invocation) == "<im> assistant"
    assert [example.suffix_start for example in found.train] == [len(e.prompt) - 2 for e in found.train]
    assert found.notes == ("rows have the form messages",)
    assert first.place == "a.jsonl, row 1, message 2"


def test_messages_as_prompt_and_completion() -> None:
    """Turns in the prompt are no answers."""
    found, tokenizer = encoded(
        {"prompt": [user("a"), assistant("film"), user("a")], "completion": [assistant("story")]}
    )
    (example,) = found.train
    assert (
        words(tokenizer, example.prompt)
        == "<s> <im> user a <end> <im> assistant film <end> <im> user a <end> <im> assistant"
    )
    assert words(tokenizer, example.options[0]) == "story <end>"


def test_template_arguments_and_tools_reach_the_template() -> None:
    keys = {"chat_template_kwargs": {"think": "great"}}
    found, tokenizer = encoded({"messages": [user("a"), assistant("film")], "tools": [{"name": "dull"}]}, keys=keys)
    assert words(tokenizer, found.train[0].prompt).startswith("<s> great dull <im> user a")
    with pytest.raises(DataError, match=r"task\.chat_template_kwargs: the rows have the form prompt, completion"):
        encoded({"prompt": "a", "completion": " film"}, keys=keys)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([user("a")], "no turn of the assistant to learn from"),
        ([user("a"), assistant("film"), {"role": "user", "content": ["x"]}], "message 3: its content is a list"),
        ([user("a"), {"role": "assistant", "content": None}], "message 2: its content is null"),
    ],
)
def test_conversations_that_cannot_be_used(messages: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.jsonl, row 1.*{message}"):
        encoded({"messages": messages})


def test_a_conversation_needs_a_template() -> None:
    items: list[Item] = [Row({"messages": [user("a"), assistant("film")]}, "a.jsonl, row 1")]
    with pytest.raises(DataError, match=r"^rows hold messages, and the tokenizer has no chat template"):
        encode(AutoTask(), items, [], Lora(), MODEL, chatting(None))
    with pytest.raises(DataError, match="row 1: the chat template refuses these messages: no films"):
        encode(AutoTask(), items, [], Lora(), MODEL, chatting("{{ raise_exception('no films') }}"))
    forgetful = (
        "{% for m in messages[-1:] %}<im> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<im> {% endif %}"
    )
    with pytest.raises(DataError, match=r"row 1, message 1: the chat template leaves out what user says"):
        encode(AutoTask(), items, [], Lora(), MODEL, chatting(forgetful))
    counting = "{{ messages | length }} " + CHATML
    with pytest.raises(
        DataError, match=r"row 1, message 2: the chat template writes the conversation .* in another way"
    ):
        encode(AutoTask(), items, [], Lora(), MODEL, chatting(counting))


def test_conversations_may_lie_elsewhere() -> None:
    tokenizer = chatting()
    model = tiny.model()
    model.resize_token_embeddings(len(tokenizer))
    items: list[Item] = [Row({"chat": {"turns": [user("a"), assistant("film")]}}, "a.jsonl, row 1")]
    (example,) = encode(ChatTask(messages="chat.turns"), items, [], Lora(), model, tokenizer).train
    assert words(tokenizer, example.options[0]) == "film <end>"
    with pytest.raises(DataError, match=r"row 1: chat is \{'turns'.*, expected messages such as"):
        encode(ChatTask(messages="chat"), items, [], Lora(), model, tokenizer)
    with pytest.raises(DataError, match=r"task\.shots: conversations take no solved rows"):
        encode(ChatTask(messages="chat.turns", shots=1), items * 2, [], Lora(), model, tokenizer)


@pytest.mark.parametrize("row", [{"input": "a film"}, {"input": ""}, {}], ids=["input", "empty", "none"])
def test_alpaca(row: dict[str, str]) -> None:
    form = next(form for form in FORMS if form.fields == ("instruction", "output"))
    one = Row({"instruction": "Sum {it} up.", "output": "It is good.", **row}, "a.jsonl, row 1")
    template: Any = form.template([one], {})
    head = "Below is an instruction that describes a task"
    if row.get("input"):
        head += ", paired with an input that provides further context"
    middle = "### Input:\na film\n\n" if row.get("input") else ""
    assert template._fill(one) == (
        f"{head}. Write a response that appropriately completes the request.\n\n### Instruction:\nSum {{it}} up.\n\n{middle}",
        "### Response:\n",
    )
    assert template.answers(one) == (("It is good.",), 0)


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (["dull", "fine", "fine"], (" dull", " fine")),
        ([1, 0, 2], (" 0", " 1", " 2")),
        (["10", "9", "9"], (" 10", " 9")),
        ([True, False, True], (" false", " true")),
        ([Category(1, "bad"), Category(0, "good"), Category(1, "bad")], (" good", " bad")),
    ],
    ids=str,
)
def test_text_and_label(labels: list[Any], options: tuple[str, ...]) -> None:
    """Options are the labels that occur, and every row's is its own."""
    found, tokenizer = encoded(*({"text": "a film", "label": label} for label in labels))
    assert isinstance(found.objective, Choice)
    names = [label.text if isinstance(label, Category) else str(label).lower() for label in labels]
    assert [options[example.label].strip() for example in found.train] == names
    assert words(tokenizer, found.train[0].prompt).startswith("a film")
    named = ", ".join(option.strip() for option in options)
    assert found.notes == (f"rows have the form text, label; options: {named}",)


def test_labels_that_begin_with_another_end_with_a_line() -> None:
    """Otherwise " 10" would never be likelier than " 1", which it begins with."""
    form = next(form for form in FORMS if form.chooses)
    rows = [Row({"text": "a film", "label": label}, f"row {label}") for label in (10, 1, 2)]
    template: Any = form.template(rows, {})
    assert (template.options, template.labels) == ((" 1\n", " 10\n", " 2\n"), ("1", "10", "2"))
    assert [template.answers(row)[1] for row in rows] == [1, 0, 2]
    assert template.kinds == ("1", "10", "2")


def test_a_row_without_a_label_makes_no_option_of_nothing() -> None:
    with pytest.raises(DataError, match=r"row 2: label is '', expected .* one of \[' dull', ' fine'\]"):
        encoded(*({"text": "a film", "label": label} for label in ("fine", "", "dull ")))


def test_many_options_are_named_in_part() -> None:
    found, _ = encoded(*({"text": "a film", "label": f"kind {i:02}\x1b"} for i in range(15)))
    (note,) = found.notes
    assert note.endswith("kind 10\\x1b, kind 11\\x1b and 3 more")


def test_labels_that_are_no_classes() -> None:
    for labels in (["one", "one"], [f"label {i}" for i in range(101)]):
        with pytest.raises(
            DataError, match=rf"row 1: the rows' labels have {len(set(labels))} values .* expected 2 to 100"
        ):
            encoded(*({"text": "a film", "label": label} for label in labels))


@pytest.mark.parametrize("row", [{"sentence": "a", "label": 1}, {"prompt": 1, "completion": "a"}, {}])
def test_rows_of_no_known_form_say_what_is_known(row: dict[str, Any]) -> None:
    with pytest.raises(
        DataError, match=r"^a\.jsonl, row 1: fields .* are of no known form \(messages; .*text, label\); say how"
    ):
        encoded(row)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (
            {"prompt": None, "completion": " fine"},
            {"prompt": "a film", "completion": " fine"},
            "{prompt}, which is null",
        ),
        (
            {"prompt": "a film", "completion": None},
            {"prompt": "a film", "completion": " fine"},
            "{completion}, which is null",
        ),
        ({"instruction": 1.5, "output": None}, {"instruction": "a film", "output": "fine"}, "what it writes is null"),
        ({"text": None, "label": 1}, {"text": "a film", "label": 0}, "{text}, which is null"),
        ({"messages": "a film"}, {"messages": [user("a"), assistant("film")]}, "messages is 'a film'"),
    ],
)
def test_a_first_row_that_is_at_fault_says_so_and_hides_no_form(
    first: dict[str, Any], second: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl, row 1: .*{re.escape(reason)}"):
        encoded(first, second)
    found, _ = encoded(first, second, keys={"on_error": "skip"})
    assert found.train[0].place.startswith("a.jsonl, row 2")
