"""Forms of rows that are known by their fields, so that nothing has to be said about them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twinpass.errors import DataError
from twinpass.task.chat import ChatTemplate
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.completion import CompletionTemplate
from twinpass.task.fields import as_text, plain
from twinpass.task.messages import is_conversation, messages_of
from twinpass.task.rows import Category, Row
from twinpass.task.template import Template

MOST_LABELS = 100
ALPACA = (
    "Below is an instruction that describes a task{% if input is defined and input %}, paired with an input that provides further "
    "context{% endif %}. Write a response that appropriately completes the request.\n\n### Instruction:\n{{ instruction }}\n\n"
    "{% if input is defined and input %}### Input:\n{{ input }}\n\n{% endif %}"
)


@dataclass(frozen=True)
class Form:
    """``fields`` that a row of this form has; ``fits`` says whether the first row's values are of the right kind.

    Rows of one that ``chooses`` have a label, others a text to write; with a ``suffix`` all prompts end alike.
    ``lost`` says which other fields a form would leave out although they change what a row means, and what to do with them.
    """

    name: str
    fields: tuple[str, ...]
    fits: Callable[[Mapping[str, Any]], bool]
    template: Callable[[Sequence[Row], Mapping[str, Any]], Template]
    chooses: bool = False
    suffix: bool = True
    lost: Callable[[Mapping[str, Any]], str] = lambda fields: ""


def form_of(fields: Mapping[str, Any]) -> Form | None:
    """The form of a row with these fields; None: none that is known."""
    return next((form for form in FORMS if set(form.fields) <= set(fields) and form.fits(fields)), None)


def form_of_all(rows: Sequence[Row]) -> Form | None:
    """The form of the first of these rows that has one: those before it are at fault, and say so when they are read."""
    return next((form for row in rows if (form := form_of(row.fields))), None)


def whole(row: Row) -> Iterator[Row]:
    """A row that its form reads, as it is.

    Raises:
        DataError: the form would leave out what changes its meaning.
    """
    if (form := form_of(row.fields)) and (lost := form.lost(row.fields)):
        raise DataError(f"{row.place}: {lost}")
    yield row


def recognised(rows: Sequence[Row], chat_template_kwargs: Mapping[str, Any]) -> tuple[str, Template]:
    """The name of the rows' form, and how they are read.

    Raises:
        DataError: it is none that is known.
    """
    first = rows[0].fields
    if form := form_of_all(rows):
        template = form.template(rows, chat_template_kwargs)
        if chat_template_kwargs and not isinstance(template, ChatTemplate):
            raise DataError(
                f"task.chat_template_kwargs: the rows have the form {form.name}, which no chat template writes; leave them out"
            )
        return form.name, template
    for name in CONVERSATIONS:
        if name in first:
            messages_of(rows[0], name)
    if {"chosen", "rejected"} <= set(first):
        raise DataError(
            f"{rows[0].place}: chosen and rejected are a preference, which has no form of its own; {_of_preferences(first)}"
        )
    known = "; ".join(form.name for form in FORMS)
    raise DataError(
        f"{rows[0].place}: fields {', '.join(map(str, first))} are of no known form ({known}); "
        "say how to read them: task.prompt, and task.options or task.completion"
    )


def _of_preferences(fields: Mapping[str, Any]) -> str:
    if not is_conversation(fields["chosen"]):
        return (
            'to write what was chosen, set task.completion = "{chosen}" and task.prompt; to choose it, add a field label that is 0 to every row, '
            'and set task.options = ["{chosen}", "{rejected}"] and task.prompt'
        )
    apart = is_conversation(fields.get("prompt"))
    named = 'task.messages = "prompt" and task.completion = "chosen"' if apart else 'task.messages = "chosen"'
    return f'to write what was chosen, set task.kind = "chat" and {named}'


def _system(fields: Mapping[str, Any]) -> str:
    if not isinstance(said := fields.get("system"), str) or not said.strip():
        return ""
    return "a field system stands beside the form's own, and would not be read; make it the first message, or drop the field"


def _unwanted(fields: Mapping[str, Any]) -> str:
    if plain(fields.get("label")) is not False:
        return ""
    return "its label is false, a completion that is not wanted (as in KTO), and it would be learned; drop the row, or say task.prompt and task.completion"


def _beside_alpaca(fields: Mapping[str, Any]) -> str:
    found = [name for name in ("history", "system") if fields.get(name)]
    if not found:
        return ""
    return f"{' and '.join(found)} would not be read, as Alpaca's prompt has no place for it; write messages, say task.prompt, or drop the field"


def _is_text(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda fields: all(isinstance(plain(fields[name]), str) for name in names)


def _labelled(rows: Sequence[Row], kwargs: Mapping[str, Any]) -> ChoiceTemplate:
    """Options are the labels that the rows have, by name where they have one."""
    values: dict[Any, str] = {}
    for row in rows:
        value = plain(row.fields.get("label"))
        if isinstance(value, bool):
            values[value] = str(value).lower()
            continue
        try:
            text = as_text(value).strip()
        except ValueError:
            continue
        if not text:
            continue
        values[int(value) if isinstance(value, Category) else text] = text
    names = [values[key] for key in sorted(values, key=lambda key: (isinstance(key, str), key))]
    if not 2 <= len(names) <= MOST_LABELS or len(set(names)) < len(names):
        raise DataError(
            f"{rows[0].place}: the rows' labels have {len(names)} values ({', '.join(names)[:60]}), expected 2 to {MOST_LABELS}; "
            "name the answers in task.options"
        )
    begins = any(name != other and name.startswith(other) for name in names for other in names)
    end = "\n" if begins else ""  # without it "10" would never be likelier than "1"
    options = tuple(f" {name}{end}" for name in names)
    return ChoiceTemplate(prompt="{text}\n", suffix="Label:", options=options, labels=tuple(names) if begins else ())


def _conversation(name: str) -> Form:
    return Form(
        name,
        (name,),
        lambda fields: is_conversation(fields[name]),
        lambda rows, kwargs: ChatTemplate(messages=name, chat_template_kwargs=dict(kwargs)),
        lost=_system,
    )


CONVERSATIONS = ("messages", "conversations")

FORMS = (
    *map(_conversation, CONVERSATIONS),
    Form(
        "prompt, completion (messages)",
        ("prompt", "completion"),
        lambda fields: is_conversation(fields["prompt"]) and is_conversation(fields["completion"]),
        lambda rows, kwargs: ChatTemplate(
            messages="prompt", completion="completion", chat_template_kwargs=dict(kwargs)
        ),
        lost=lambda fields: _unwanted(fields) or _system(fields),
    ),
    Form(
        "prompt, completion",
        ("prompt", "completion"),
        _is_text("prompt", "completion"),
        lambda rows, kwargs: CompletionTemplate(prompt="{prompt}", completion="{completion}"),
        suffix=False,
        lost=lambda fields: _unwanted(fields) or _system(fields),
    ),
    Form(
        "instruction, input, output",
        ("instruction", "output"),
        _is_text("instruction", "output"),
        lambda rows, kwargs: CompletionTemplate(
            prompt=ALPACA, suffix="### Response:\n", completion="{{ output }}", syntax="jinja"
        ),
        lost=_beside_alpaca,
    ),
    Form("text, label", ("text", "label"), _is_text("text"), _labelled, chooses=True),
)
"""Tried in this order."""
