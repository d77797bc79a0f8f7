"""Messages of a conversation, however data write them, as chat templates take them."""

from collections.abc import Mapping, Sequence
from typing import Any

from twinpass.errors import DataError
from twinpass.task.fields import as_text, plain, value_of
from twinpass.task.rows import Row

Message = Mapping[str, Any]
ASSISTANT = "assistant"
CALLS = ("tool_calls", "function_call")
REASONING = ("reasoning_content", "thinking", "reasoning")
SPEAKERS = {"human": "user", "gpt": ASSISTANT, "user": "user", ASSISTANT: ASSISTANT, "system": "system", "tool": "tool"}
"""Who speaks in ShareGPT's ``from``, as the role that chat templates know."""


def is_conversation(value: object) -> bool:
    """Whether it looks like a list of messages, or of ShareGPT's turns."""
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(each, Mapping) and ("role" in each or {"from", "value"} <= set(each)) for each in value)
    )


def messages_of(row: Row, name: str) -> list[Message]:
    """The messages in the field ``name``, each with a role; ``content`` is a text, or there are calls of tools instead.

    Raises:
        DataError: they are none.
    """
    value = value_of(row, name, "task")
    if not is_conversation(value) or not isinstance(value, list | tuple):
        hint = "; it is a text, so read the JSON in it first" if isinstance(value, str) else ""
        raise DataError(
            f'{row.place}: {name} is {value!r:.40}, expected messages such as [{{"role": "user", "content": "..."}}]{hint}'
        )
    return [_message(each, f"{row.place}, message {i}") for i, each in enumerate(value, 1)]


def is_answer(message: Message, place: str) -> bool:
    """Whether it is the assistant's, and to be learned: OpenAI's ``weight`` 0 says that it is not.

    Raises:
        DataError: it says nothing, or its weight is another.
    """
    if message["role"] != ASSISTANT:
        return False
    weight = plain(message.get("weight"))
    if weight is not None and not (isinstance(weight, int | float) and weight in (0, 1)):
        raise DataError(f"{place}: its weight is {weight!r:.20}, expected 1, or 0 for a turn that is not learned")
    if weight is not None and not weight:
        return False
    if not str(message.get("content") or "").strip() and not any(map(message.get, CALLS)):
        raise DataError(f'{place}: the assistant says nothing; drop the turn, or give it "weight": 0')
    return True


def _message(value: Mapping[str, Any], place: str) -> Message:
    found = {key: each for key, each in value.items() if each is not None or key in ("role", "content")}
    if "role" not in found:
        speaker, text = found.pop("from"), found.pop("value")
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise DataError(
                f"{place}: it is from {speaker!r:.40}, expected one of {', '.join(SPEAKERS)}; write role and content instead"
            )
        found = {"role": SPEAKERS[speaker], "content": text, **found}
    if not isinstance(found["role"], str):
        raise DataError(f"{place}: its role is {found['role']!r:.40}, expected a text such as user")
    if _are_parts(found.get("content")):
        found["content"] = "".join(_text(part, place) for part in found["content"])
    try:
        found["content"] = as_text(found.get("content"))
    except ValueError as error:
        if found.get("content") is not None or not found.get("tool_calls"):
            raise DataError(f"{place}: its content {error}") from error
    return found


def _are_parts(content: object) -> bool:
    return isinstance(content, list | tuple) and all(isinstance(part, Mapping) and "type" in part for part in content)


def _text(part: Mapping[str, Any], place: str) -> str:
    if part["type"] != "text" or not isinstance(part.get("text"), str):
        raise DataError(
            f"{place}: its content has a part of type {part['type']!r:.40}; only texts can be read, drop the row"
        )
    return str(part["text"])


def said_by(messages: Sequence[Message]) -> str:
    """The roles that there are, for a sentence."""
    return ", ".join(dict.fromkeys(repr(message["role"]) for message in messages))
