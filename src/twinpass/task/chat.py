"""Rows that are conversations, written by the tokenizer's chat template; the answers are the assistant's turns."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, Self

from pydantic.dataclasses import dataclass as settings

from twinpass.core import Tokens
from twinpass.errors import DataError
from twinpass.settings import STRICT
from twinpass.task.example import Asked, Example
from twinpass.task.fields import as_text
from twinpass.task.messages import ASSISTANT, CALLS, REASONING, Message, is_answer, messages_of, said_by
from twinpass.task.rows import Row
from twinpass.task.template import Template
from twinpass.task.tokens import common, ids_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@settings(frozen=True, config=STRICT)
class ChatTemplate(Template):
    """Every turn of the assistant is an example: the prompt is the conversation before it, as the model reads it when it answers.

    ``messages`` names the field with the conversation, a list of ``{"role": ..., "content": ...}`` or of ShareGPT's ``{"from": ...,
    "value": ...}``. ``completion`` names one with messages that go on from there; then only the assistant's turns in these are answers.
    Turns with ``"weight": 0`` are none. ``chat_template_kwargs`` go to the template, and so do the row's ``tools``, if it has any.
    A row of which the template leaves something out is refused. Activated adapters act from where it begins the assistant's turn.
    """

    messages: str = "messages"
    completion: str = ""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    def with_shots(self, rows: Sequence[Row]) -> Self:
        raise DataError(
            "task.shots: conversations take no solved rows in front; put them into the messages, or leave shots out"
        )

    def require_filled(self, row: Row) -> None:
        messages_of(row, self.messages)

    def examples(self, row: Row, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Example]:
        messages, given = self._conversation(row)
        turns = [i for i in range(given, len(messages)) if is_answer(messages[i], f"{row.place}, message {i + 1}")]
        if not turns:
            raise DataError(
                f"{row.place}: no turn of the assistant to learn from, the roles are {said_by(messages[given:])}; drop the row"
            )
        self._require_written(row, tokenizer, messages[: turns[-1] + 1], turns)
        for i in turns:
            yield self._turn(row, tokenizer, messages, i)

    def asked(self, row: Row, tokenizer: "PreTrainedTokenizerBase") -> Asked:
        """The conversation up to the last turn of the assistant, or all of it where another one spoke last."""
        messages = messages_of(row, self.messages)
        if not self.completion and messages[-1]["role"] == ASSISTANT:
            messages = messages[:-1]
        self._require_written(row, tokenizer, messages, ())
        ids = self._before_an_answer(row, tokenizer, messages)
        before = ids_of(tokenizer, self._written(row, tokenizer, messages), special=False)
        return Asked(ids, suffix_start=common(before, ids), place=row.place)

    def continued(self, row: Row, tokenizer: "PreTrainedTokenizerBase") -> Tokens:
        """The whole conversation's tokens, up to where the assistant is to answer.

        Raises:
            DataError: it cannot be written.
        """
        messages = self._conversation(row)[0]
        self._require_written(row, tokenizer, messages, ())
        return self._before_an_answer(row, tokenizer, messages)

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
        if isinstance(tools, str):
            raise DataError(f"{row.place}: tools is a text, expected a list of objects; read the JSON in it first")
        try:
            text: Any = tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=tools,
                tokenize=False,
                **{**self.chat_template_kwargs, **extra},
            )
        except Exception as error:  # whatever a template does with messages
            raise DataError(f"{row.place}: the chat template refuses these messages: {error}") from error
        try:
            return as_text(text)
        except ValueError as error:
            raise DataError(f"{row.place}: what the chat template writes {error}") from error

    def _conversation(self, row: Row) -> tuple[list[Message], int]:
        """All messages, and how many of them are given."""
        messages = messages_of(row, self.messages)
        if not self.completion:
            return messages, 0
        return messages + messages_of(row, self.completion), len(messages)

    def _require_written(
        self, row: Row, tokenizer: "PreTrainedTokenizerBase", messages: list[Message], answers: Collection[int]
    ) -> None:
        """Refuse what the chat template leaves out: a message, its calls, the row's tools, what the assistant thought before an answer.

        Raises:
            DataError: naming it.
        """
        if not messages:
            return
        whole = self._written(row, tokenizer, messages)
        if row.fields.get("tools") and whole == self._written(Row({}, row.place), tokenizer, messages):
            raise DataError(_left_out(row.place, "the row's tools"))
        for i, message in enumerate(messages):
            place = f"{row.place}, message {i + 1}"
            content = str(message.get("content") or "").strip()
            if content not in whole and whole == self._unless_refused(row, tokenizer, messages[:i] + messages[i + 1 :]):
                raise DataError(_left_out(place, f"what {message['role']} says"))
            if self._same_without(CALLS, row, tokenizer, messages, i):
                raise DataError(_left_out(place, "the calls of tools"))
            if i in answers and self._same_without(REASONING, row, tokenizer, messages[: i + 1], i):
                raise DataError(_left_out(place, "the reasoning"))

    def _same_without(
        self,
        keys: Sequence[str],
        row: Row,
        tokenizer: "PreTrainedTokenizerBase",
        messages: list[Message],
        at: int,
    ) -> bool:
        """Whether a message has one of ``keys``, and the template writes the same without them."""
        if not any(map(messages[at].get, keys)):
            return False
        without = {key: value for key, value in messages[at].items() if key not in keys}
        return self._written(row, tokenizer, messages) == self._unless_refused(
            row, tokenizer, [*messages[:at], without, *messages[at + 1 :]]
        )

    def _unless_refused(self, row: Row, tokenizer: "PreTrainedTokenizerBase", messages: list[Message]) -> str | None:
        try:
            return self._written(row, tokenizer, messages) if messages else ""
        except DataError:
            return None


def _left_out(place: str, what: str) -> str:
    return (
        f"{place}: the chat template leaves out {what}; take a model whose template writes it, set task.chat_template_kwargs, "
        "write it into the content of a message, or drop it"
    )


def _to_the_last_special(text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Without the white space that a template writes after the token that ends a turn: no model has to learn that."""
    bare = text.rstrip()
    return bare if bare.endswith(tuple(map(str, tokenizer.all_special_tokens)) or "\0") else text
