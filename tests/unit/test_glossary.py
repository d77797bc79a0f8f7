"""The glossary names what is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "glossary.md").read_text()


def test_every_name_of_the_glossary_is_a_class_or_constant() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    defined = set(re.findall(r"^class (\w+)", source, re.MULTILINE)) | set(
        re.findall(r"^([A-Z_]+) =", source, re.MULTILINE)
    )
    rows = [line.split("|") for line in PAGE.splitlines() if line.startswith("| ") and "`" in line]
    names = {name for row in rows for name in re.findall(r"`(\w+)`", row[3])} | set(re.findall(r"`([A-Z_]{3,})`", PAGE))
    assert len(rows) > 20
    assert names <= defined, names - defined


def test_no_word_is_explained_twice() -> None:
    words = [line.split("|")[1].strip() for line in PAGE.splitlines() if line.startswith("| ")]
    assert len(words) == len(set(words))
