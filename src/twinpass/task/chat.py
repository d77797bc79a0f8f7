"""Rows that are conversations, written by the tokenizer's chat template; the answers are the assistant's turns."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, Self

from pydantic.dataclasses import dataclass as settings

from twinpass.core import Tokens
from twinpass.errors import DataError
from twinpass.settings import STRICT
from twinpass.task.example import Asked, Example
from twinpass.task.fields import as_text, value_of
from twinpass.task.rows import Row
from twinpass.task.template import Template
from twinpass.task.tokens import common, ids_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
ASSISTANT = "assistant"


@settings(frozen=True, config=STRICT)
class ChatTemplate(Template):
    """Every turn of the assistant is an example: the prompt is the conversation before it, as the model reads it when it answers.

    ``messages`` names the field with the conversation, a list of ``{"role": ..., "content": ...}``. ``completion`` names one with
    messages that go on from there; then only the assistant's turns in these are answers. ``chat_template_kwargs`` go to the template,
    and so do the row's ``tools``, if it has any. Activated adapters act from where the template begins the assistant's turn.
    """

    messages: str = "messages"
    completion: str = ""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    def with_shots(self, rows: Sequence[Row]) -> Self:
        raise DataError(
            "task.shots: conversations take no solved rows in front; put them into the messages, or leave shots out"
        )

    def examples(self, row: Row, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Example]:
        messages, given = self._conversation(row)
        turns = [i for i in range(given, len(messages)) if messages[i]["role"] == ASSISTANT]
        if not turns:
            raise DataError(f"{row.place}: no turn of the assistant to learn from; drop the row")
        for i in turns:
            yield self._turn(row, tokenizer, messages, i)

    def asked(self, row: Row, tokenizer: "PreTrainedTokenizerBase") -> Asked:
        """The conversation up to the last turn of the assistant, or all of it where another one spoke last."""
        messages = _messages(row, self.messages)
        if not self.completion and messages[-1]["role"] == ASSISTANT:
            messages = messages[:-1]
        ids = self._before_an_answer(row, tokenizer, messages)
        before = ids_of(tokenizer, self._written(row, tokenizer, messages), special=False)
        return Asked(ids, suffix_start=common(before, ids), place=row.place)

    def continued(self, row: Row, tokenizer: "PreTrainedTokenizerBase") -> Tokens:
        """The whole conversation's tokens, up to where the assistant is to answer.

        Raises:
            DataError: it cannot be written.
        """
        return self._before_an_answer(row, tokenizer, self._conversation(row)[0])

    def _before_an_answer(self, row: Row, tokenizer: "PreTrainedTokenizerBase", messages: list[Message]) -> Tokens:
        return ids_of(tokenizer, self._written(row, tokenizer, messages, add_generation_prompt=True), special=False)

    def _turn(self, row: Row, tokenizer: "PreTrainedTokenizerBase", messages: list[Message], turn: int) -> Example:
        before = self._written(row, tokenizer, messages[:turn])
        prompt = self._written(row, tokenizer, messages[:turn], add_generation_prompt=True)
        whole = _to_the_last_special(self._written(row, tokenizer, messages[: turn + 1]), tokenizer)
        if not whole.startswith(prompt) or len(whole) == len(prompt):
            raise DataError(
                f"{row.place}, message {turn + 1}: the chat template writes the conversation before this answer in another way once the "
                "answer is there; set task.chat_template_kwargs so that it does not, or use another template"
            )
        ids = ids_of(tokenizer, prompt, special=False)
        joined = ids_of(tokenizer, whole, special=False)
        continues = joined[: len(ids)] == ids and len(joined) > len(ids)
        answer = joined[len(ids) :] if continues else ids_of(tokenizer, whole[len(prompt) :], special=False)
        start = common(ids_of(tokenizer, before, special=False), ids)
        return Example(ids, (answer,), 0, start, f"{row.place}, message {turn + 1}")

    def _written(self, row: Row, tokenizer: "PreTrainedTokenizerBase", messages: list[Message], **extra: bool) -> str:
        if tokenizer.chat_template is None:
            raise DataError(
                "rows hold messages, and the tokenizer has no chat template; take the one of an instruct model, "
                "or name the fields in task.prompt and task.completion"
            )
        tools = row.fields.get("tools") or None
        try:
            text: Any = tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=tools,
                tokenize=False,
                **{**self.chat_template_kwargs, **extra},
            )
        except Exception as error:  # whatever a template does with messages
            raise DataError(f"{row.place}: the chat template refuses these messages: {error}") from error
        return str(text)

    def _conversation(self, row: Row) -> tuple[list[Message], int]:
        """All messages, and how many of them are given."""
        messages = _messages(row, self.messages)
        if not self.completion:
            return messages, 0
        return messages + _messages(row, self.completion), len(messages)


def is_conversation(value: object) -> bool:
    """Whether it looks like a list of messages."""
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(each, Mapping) and "role" in each for each in value)
    )


def _messages(row: Row, name: str) -> list[Message]:
    value = value_of(row, name, "task")
    if not is_conversation(value) or not isinstance(value, list | tuple):
        raise DataError(
            f'{row.place}: {name} is {value!r:.40}, expected messages such as [{{"role": "user", "content": "..."}}]'
        )
    for i, message in enumerate(value, 1):
        try:
            as_text(message.get("content"))
        except ValueError as error:
            if message.get("tool_calls"):
                continue
            raise DataError(f"{row.place}, message {i}: its content {error}") from error
    return list(value)


def _to_the_last_special(text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Without the white space that a template writes after the token that ends a turn: no model has to learn that."""
    bare = text.rstrip()
    return bare if bare.endswith(tuple(map(str, tokenizer.all_special_tokens)) or "\0") else text
