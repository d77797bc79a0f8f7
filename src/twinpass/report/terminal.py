"""Text of others on a terminal: it is shown, and does nothing."""

from rich.markup import escape


def cleared(text: object) -> str:
    """``text`` with control characters, and those that turn its direction, spelled out."""
    return "".join(c if c in "\n\t" or c.isprintable() else ascii(c)[1:-1] for c in str(text))


def safe(text: object) -> str:
    """The same for a console that reads markup."""
    return escape(cleared(text))
