"""What README and the pages of docs show: blocks of code between fences, and commands within sentences."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[tuple[str, str]]:
    """The language and text of each block of a page, in order."""
    return FENCED.findall(text_of(page))


def snippets(page: str, language: str) -> list[str]:
    """The blocks of a page in one language, in order; whoever runs them takes them apart, so that one more is noticed."""
    return [text for own, text in blocks(page) if own == language]


def quoted(page: str) -> list[str]:
    """What stands between backticks in a page's sentences and tables."""
    return re.findall(r"`([^`\n]+)`", FENCED.sub("", text_of(page)))


def unfenced(page: str) -> list[str]:
    """Lines that are shown as code because four spaces precede them: those of paragraphs that begin so."""
    paragraphs = re.split(r"\n[ \t]*\n", FENCED.sub("", text_of(page)))
    return [line for each in paragraphs if each.lstrip("\n").startswith("    ") for line in each.splitlines()]
