"""Conversations as data write them: what is trained of each, written out; and what would be lost is refused."""

import re
from typing import Any

import pytest
import tiny
from conversing import assistant, chatting, encoded, user, words

from twinpass.config.encode import encode
from twinpass.config.given import items
from twinpass.config.tasks import AutoTask, ChatTask
from twinpass.errors import DataError
from twinpass.model.trainable import Lora
from twinpass.objective.completion import Completion
from twinpass.task.chat import ChatTemplate
from twinpass.task.rows import Row

CALLING = (
    "{% for tool in tools or [] %}{{ tool.name }} {% endfor %}{% for message in messages %}<im> {{ message.role }} "
    "{% if message.reasoning_content and loop.last %}{{ message.reasoning_content }} {% endif %}{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %} {{ call.function.name }}{% for name in call.function.arguments %} {{ name }}{% endfor %}"
    "{% endfor %} <end> \n{% endfor %}{% if add_generation_prompt %}<im> assistant {% endif %}"
)
CALLS = [{"type": "function", "function": {"name": "film", "arguments": {"a": 1}}}]


def answers(template: str | None = None, /, **fields: Any) -> list[tuple[str, str]]:
    """Prompts and answers of a row, as words."""
    tokenizer = chatting() if template is None else chatting(template)
    found = ChatTemplate(messages=next(iter(fields))).examples(Row(fields, "a.jsonl, row 1"), tokenizer)
    return [(words(tokenizer, each.prompt), words(tokenizer, each.options[0])) for each in found]


def test_share_gpt() -> None:
    """``from`` and ``value`` are role and content; the column needs no naming."""
    turns = [("system", "great"), ("human", "a film"), ("gpt", "fine"), ("human", "a story"), ("gpt", "dull")]
    row = {"conversations": [{"from": speaker, "value": value} for speaker, value in turns]}
    found, tokenizer = encoded(row)
    assert isinstance(found.objective, Completion)
    assert found.notes == ("rows have the form conversations",)
    first, second = found.train
    assert words(tokenizer, first.prompt) == ("<s> <im> system great <end> <im> user a film <end> <im> assistant")
    assert words(tokenizer, first.options[0]) == "fine <end>"
    assert words(tokenizer, second.prompt).endswith("assistant fine <end> <im> user a story <end> <im> assistant")
    assert words(tokenizer, second.options[0]) == "dull <end>"
    with pytest.raises(DataError, match=r"message 1: it is from 'observation', expected one of human, gpt, "):
        answers(conversations=[{"from": "observation", "value": "a"}])


def test_content_in_parts_is_one_text() -> None:
    parts = [{"type": "text", "text": "a fine"}, {"type": "text", "text": " film", "image_url": None}]
    assert answers(messages=[{"role": "user", "content": parts}, assistant("dull")]) == [
        ("<s> <im> user a fine film <end> <im> assistant", "dull <end>")
    ]
    with pytest.raises(DataError, match=r"message 1: its content has a part of type 'image_url'; only texts"):
        answers(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, assistant("a")])


def test_numbers_are_written_as_text() -> None:
    assert answers(messages=[{"role": "user", "content": 1}, assistant("2")])[0][0].endswith(
        "user 1 <end> <im> assistant"
    )


def test_turns_of_weight_0_are_read_and_not_learned() -> None:
    messages = [user("a"), {**assistant("film"), "weight": 0}, user("story"), {**assistant("dull"), "weight": 1}]
    ((prompt, answer),) = answers(messages=messages)
    assert "assistant film <end>" in prompt
    assert answer == "dull <end>"
    with pytest.raises(DataError, match=r"message 2: its weight is 0\.5, expected 1, or 0"):
        answers(messages=[user("a"), {**assistant("film"), "weight": 0.5}])
    with pytest.raises(DataError, match="no turn of the assistant to learn from, the roles are 'user', 'assistant'"):
        answers(messages=messages[:2])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([user("a"), assistant("")], 'message 2: the assistant says nothing; drop the turn, or give it "weight": 0'),
        ([user("a"), assistant(" ")], "message 2: the assistant says nothing"),
        ([user("a"), {"role": "gpt", "content": "b"}], "no turn of the assistant .* the roles are 'user', 'gpt'"),
        ([{"role": None, "content": "a"}, assistant("b")], "message 1: its role is None, expected a text such as user"),
        (
            [user("a"), {**assistant(""), "tool_calls": CALLS}],
            "message 2: the chat template leaves out the calls of tools",
        ),
        (
            [user("a"), {**assistant("x"), "tool_calls": CALLS}, {"role": "tool", "content": "b"}, assistant("c")],
            "message 2: the chat template leaves out the calls of tools; take a model whose template writes it",
        ),
        (
            [user("a"), {**assistant("b"), "reasoning_content": "c"}],
            "message 2: the chat template leaves out the reasoning",
        ),
        ([user("a"), {**assistant("b"), "thinking": "c"}], "message 2: the chat template leaves out the reasoning"),
    ],
)
def test_what_would_be_lost_is_refused(messages: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.jsonl, row 1.*{message}"):
        answers(messages=messages)


def test_what_a_template_writes_is_trained() -> None:
    """Calls, tools, and what was thought before each answer, which is written of the last one alone."""
    messages = [
        user("a"),
        {**assistant("fine"), "reasoning_content": "great", "tool_calls": CALLS},
        {"role": "tool", "content": "story"},
        {**assistant("dull"), "reasoning_content": "bad"},
    ]
    first, second = answers(CALLING, messages=messages, tools=[{"name": "great"}])
    assert first == ("great <im> user a <end> <im> assistant", "great fine film a <end>")
    assert second[0].endswith("<im> assistant fine film a <end> <im> [UNK] story <end> <im> assistant")
    assert second[1] == "bad dull <end>"


def test_a_template_that_leaves_out_a_role_is_refused() -> None:
    template = (
        "{% for message in messages if message.role != 'system' %}<im> {{ message.role }} {{ message.content }} <end> {% endfor %}"
        "{% if add_generation_prompt %}<im> assistant {% endif %}"
    )
    system = {"role": "system", "content": "great story"}
    assert answers(template, messages=[user("a"), assistant("film")])
    with pytest.raises(DataError, match="message 1: the chat template leaves out what system says"):
        answers(template, messages=[system, user("a"), assistant("film")])
    template = template.replace(" if message.role != 'system'", "")
    assert answers(template, messages=[system, user("a"), assistant("film")])


def test_tools_have_to_be_read_by_the_template() -> None:
    messages = [user("a"), assistant("film")]
    silent = CALLING.replace("{{ tool.name }} ", "")
    with pytest.raises(DataError, match="row 1: the chat template leaves out the row's tools"):
        answers(silent, messages=messages, tools=[{"name": "dull"}])
    with pytest.raises(DataError, match="row 1: tools is a text, expected a list of objects"):
        answers(CALLING, messages=messages, tools='[{"name": "dull"}]')
    template = ChatTemplate()
    with pytest.raises(DataError, match="row 1: the chat template leaves out the row's tools"):
        template.asked(Row({"messages": messages, "tools": [{"name": "dull"}]}, "row 1"), chatting(silent))


def test_messages_as_a_text_are_named() -> None:
    with pytest.raises(DataError, match=r"row 1: messages is '\[\{.*, expected messages such as .* read the JSON"):
        encoded({"messages": '[{"role": "user", "content": "a"}]'})


CHATS = {"messages": [user("a"), assistant("film")]}
TEXTS = {"prompt": "a", "completion": " film"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**CHATS, "system": "great"}, "a field system stands beside the form's own"),
        ({**TEXTS, "system": "great"}, "a field system stands beside the form's own"),
        ({**TEXTS, "label": False}, "its label is false, a completion that is not wanted"),
        ({"instruction": "a", "output": "b", "history": [["a", "b"]]}, "history would not be read"),
        ({"instruction": "a", "output": "b", "system": "c"}, "system would not be read"),
    ],
)
def test_fields_that_a_form_would_leave_out_are_refused(row: dict[str, Any], message: str) -> None:
    """Of such rows alone: they can be left out, and empty fields are none."""
    usable = {
        key: "" if key in ("system", "history") else True if key == "label" else value for key, value in row.items()
    }
    (first, second), held_out = items(AutoTask(), [usable, row], [row])
    assert isinstance(first, Row)
    assert held_out is not None
    for item, place in ((second, "train, row 2"), (held_out[0], "held_out, row 1")):
        assert isinstance(item, DataError)
        assert re.match(rf"{place}: {message}", str(item))


@pytest.mark.parametrize(
    ("row", "instead"),
    [
        ({"prompt": "a", "chosen": " b", "rejected": " c"}, 'set task.completion = "{chosen}" and task.prompt'),
        ({"chosen": [user("a")], "rejected": [user("a")]}, 'task.kind = "chat" and task.messages = "chosen"'),
        (
            {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]},
            'task.kind = "chat" and task.messages = "prompt" and task.completion = "chosen"',
        ),
    ],
)
def test_preferences_say_how_they_can_be_learned(row: dict[str, Any], instead: str) -> None:
    with pytest.raises(DataError, match=rf"row 1: chosen and rejected are a preference.*{re.escape(instead)}"):
        encoded(row)


def test_a_preference_is_learned_as_it_says() -> None:
    tokenizer, model = chatting(), tiny.model()
    model.resize_token_embeddings(len(tokenizer))
    row = Row({"prompt": [user("a")], "chosen": [assistant("fine")], "rejected": [assistant("dull")]}, "row 1")
    (example,) = encode(ChatTask(messages="prompt", completion="chosen"), [row], [], Lora(), model, tokenizer).train
    assert words(tokenizer, example.prompt) == "<s> <im> user a <end> <im> assistant"
    assert words(tokenizer, example.options[0]) == "fine <end>"
