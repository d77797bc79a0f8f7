"""The glossary names what is there, each name has one meaning, each page a way to it, and no file is long, README least of all."""

import ast
import re
from collections import Counter
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


def test_no_name_has_two_meanings() -> None:
    """No two classes are called alike, nor a class and what is not a class, such as the type of a setting."""
    classes, others = Counter[str](), set[str]()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                classes[node.name] += 1
            elif isinstance(node, ast.Assign):
                others |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    assert len(classes) > 100
    assert {name for name, count in classes.items() if count > 1 or name in others} == set()


def test_every_page_is_linked_from_another() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    linked = {
        (page.parent / target).resolve()
        for page in pages
        for target in re.findall(r"\]\(([^)#]+\.md)", page.read_text())
        if (page.parent / target).resolve() != page
    }
    assert [page.name for page in pages[2:] if page not in linked] == []


def test_no_file_is_long() -> None:
    files = [path for part in ("src", "tests", "benchmarks", "examples") for path in (ROOT / part).rglob("*.py")]
    lengths = {path.name: len(path.read_text().splitlines()) for path in files}
    assert len(lengths) > 300
    assert {name: length for name, length in lengths.items() if length > 350} == {}


def test_the_page_of_structure_names_each_file_of_engines_models_noise_and_cache() -> None:
    page = (ROOT / "docs" / "structure.md").read_text()
    named = {name.rpartition("/")[2] for name in re.findall(r"`([\w/]+\.py)`", page)}
    package = ROOT / "src" / "twinpass"
    files = [path for part in ("engine", "model", "perturb", "cache") for path in (package / part).rglob("*.py")]
    assert len(files) > 80
    assert {path.name for path in files} - named == {"__init__.py"}
    everywhere = {path.name for folder in (package, ROOT / "tests") for path in folder.rglob("*.py")}
    assert named <= everywhere, named - everywhere


def test_the_first_page_is_short_and_its_sentences_are_plain() -> None:
    page = (ROOT / "README.md").read_text()
    assert len(page.split()) < 700
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    prose = "\n".join(line for line in prose.splitlines() if not line.startswith(("#", "|", "!")))
    prose = re.sub(r"\]\([^)]*\)", "]", prose)
    sentences = [part.split() for part in re.split(r"[.!?:]\s|\n\n", prose) if len(part.split()) > 2]
    assert len(sentences) > 25
    assert sum(map(len, sentences)) < 20 * len(sentences)
