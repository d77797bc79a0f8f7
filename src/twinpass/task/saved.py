"""Templates as plain values, and back."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from twinpass.task.chat import ChatTemplate
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.completion import CompletionTemplate
from twinpass.task.reward import RewardTemplate
from twinpass.task.template import Template

KINDS: Mapping[str, type[Any]] = {
    "options": ChoiceTemplate,
    "completion": CompletionTemplate,
    "messages": ChatTemplate,
    "chat_template_kwargs": RewardTemplate,
}
"""By a field that no kind before it has."""


def saved(template: Template) -> dict[str, Any]:
    """The template's own fields, without what else a task says.

    Raises:
        TypeError: it is of another kind.
    """
    for kind in KINDS.values():
        if isinstance(template, kind):
            return {field.name: getattr(template, field.name) for field in fields(kind)}
    raise TypeError(f"{type(template).__name__} cannot be saved")


def loaded(values: Mapping[str, Any]) -> Template:
    """The template that has these fields."""
    kind = ChatTemplate if "messages" in values else next(kind for key, kind in KINDS.items() if key in values)
    template: Template = kind(**values)
    return template
