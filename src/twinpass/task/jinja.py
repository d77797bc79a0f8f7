"""Jinja for rows: in a sandbox, and nothing that is no text becomes text on the way."""

from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

from twinpass.task.fields import as_text, plain

if TYPE_CHECKING:
    from jinja2 import nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

WRITTEN = "as_text"
"""The filter that everything goes through that ``~`` joins."""

OF_TEXT = (
    *(
        "capitalize",
        "center",
        "e",
        "escape",
        "forceescape",
        "format",
        "indent",
        "lower",
        "replace",
        "safe",
        "string",
        "striptags",
    ),
    *("title", "trim", "truncate", "upper", "urlencode", "urlize", "wordcount", "wordwrap"),
)
"""Filters that make a text of whatever they are given: of null they would write "None"."""


def checked(tree: "nodes.Template") -> "nodes.Template":
    """The same template, in which ``~`` joins texts and numbers alone."""
    from jinja2 import nodes

    for joined in tree.find_all(nodes.Concat):
        joined.nodes = [nodes.Filter(each, WRITTEN, [], [], None, None) for each in joined.nodes]
    return tree


def _decoded(value: Any) -> Any:
    """Text, where it is bytes: a filter would write how Python shows these."""
    return plain(value) if isinstance(value, bytes) else value


@cache
def environment_of_rows() -> "ImmutableSandboxedEnvironment":
    """Where templates are compiled: what a row lacks is an error, and so is what is no text where text is written."""
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def shown(value: Any) -> Any:
        if isinstance(value, StrictUndefined):
            return value
        try:
            return as_text(value)
        except ValueError as error:
            raise TemplateError(f"what it writes {error}") from error

    def guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that is given texts, numbers, true or false alone: of ``format`` that goes for all that it is given."""
        first = int(hasattr(function, "jinja_pass_arg"))
        last = None if name == "format" else first + 1

        @wraps(function)
        def of_text(*arguments: Any, **options: Any) -> Any:
            for each in (*arguments[first:last], *(options.values() if last is None else ())):
                if not isinstance(each, bool):
                    shown(each)
            return function(*map(_decoded, arguments), **{key: _decoded(each) for key, each in options.items()})

        return of_text

    def join(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def of_texts(evaluation: Any, values: Any, d: str = "", attribute: Any = None) -> Any:
            found = values if attribute is not None or isinstance(values, Mapping) else [shown(each) for each in values]
            return function(evaluation, found, d, attribute)

        return of_texts

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, finalize=shown)
    filters = environment.filters
    environment.filters = {
        **filters,
        **{name: guarded(name, filters[name]) for name in OF_TEXT},
        "join": join(filters["join"]),
        WRITTEN: shown,
    }
    return environment
