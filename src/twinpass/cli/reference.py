"""The page of every command, from the commands' own declarations: ``python -m twinpass.cli.reference``."""

import argparse
from collections.abc import Iterator, Mapping

from twinpass.cli.main import parser

HEAD = """\
# Every command

Written by `make reference` from the commands' own declarations; a test holds it current. [Configuration keys](reference.md) have a page of their own.
"""


def page() -> str:
    """The whole page, as Markdown."""
    return "\n".join([HEAD, *(_command(name, grammar) for name, grammar in commands().items())])


def commands() -> Mapping[str, argparse.ArgumentParser]:
    """The grammar of each command, by its name."""
    (found,) = (action.choices for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    grammars: Mapping[str, argparse.ArgumentParser] = found
    return grammars


def _command(name: str, grammar: argparse.ArgumentParser) -> str:
    return "\n".join([f"## twinpass {name}\n", f"{grammar.description}\n", "| | |", "|---|---|", *_rows(grammar), ""])


def _rows(grammar: argparse.ArgumentParser) -> Iterator[str]:
    for action in grammar._actions:
        if not isinstance(action, argparse._HelpAction):
            text = action.help or ""
            yield f"| `{_written(action)}` | {text}{_facts(action)} |".replace("  ", " ")


def _written(action: argparse.Action) -> str:
    """An argument as it stands on the command line."""
    if action.nargs == 0:
        return action.option_strings[0]
    chosen = None if action.choices is None else ", ".join(map(str, action.choices))
    value = str(action.metavar or (f"{{{chosen}}}" if chosen else action.dest.upper())).replace("|", "\\|")
    several = {"+": f"{value} ...", "*": f"[{value} ...]", "?": f"[{value}]"}.get(str(action.nargs), value)
    return " ".join([*action.option_strings[:1], several])


def _facts(action: argparse.Action) -> str:
    return "; has to be given" if action.required and action.option_strings else ""


if __name__ == "__main__":
    print(page(), end="")
