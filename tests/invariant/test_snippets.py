"""Every block of code in README and docs is followed as it stands, or said to be run elsewhere."""

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import tomli_w
from pages import FENCED, PAGES, ROOT, blocks, quoted, snippets, unfenced

import twinpass
from twinpass.cli.main import main
from twinpass.config.load import load_config

RUN_BY: Mapping[tuple[str, str], str] = {
    ("README.md", "python"): "tests/invariant/test_readme.py",
    ("docs/extending.md", "python"): "tests/invariant/test_extending.py",
    ("docs/extending.md", "toml"): "tests/invariant/test_extending.py",
    ("docs/rewards.md", "python"): "tests/unit/test_rewards.py",
    ("docs/tasks.md", "python"): "tests/invariant/test_named_runs.py",
    ("docs/use.md", "python"): "tests/invariant/test_use_page.py",
}
"""Blocks that another test runs, which compares what comes out, by page and language."""

ONLY_SHOWN: Mapping[str, str] = {
    "make demo": "takes a minute, and sets up an environment",
    "make test": "these are the tests",
    "python -m sglang.launch_server": "needs SGLang, whose own parser reads it in tests/engines/sglang/test_used.py",
    "vllm serve": "vLLM is not run by any test, as the page says",
    "python convert_": "belongs to llama.cpp and is not run by any test, as the page says",
}
"""Lines of shell that are not run here, by how they begin, and why."""

SMALLER: Mapping[str, Sequence[str]] = {
    "doctor": ["--seconds", "0"],
    "train": [
        *("--set", "model.path=my-model", "--set", "optimizer.steps=2", "--set", "optimizer.batch_size=2"),
        *("--set", "run.eval_every=0"),
    ],
}
"""What is added to commands, so that they train on a tiny model and end soon."""

FIRST_REWARD = ["--set", "generation.max_tokens=2", "--set", "task.samples=2"]


def reviews(folder: Path) -> None:
    """What a reader has: a model and rows."""
    tiny.save(folder / "my-model")
    rows = [{**row, "label": ["bad", "good"][row["label"]]} for row in tiny.rows(12)]
    for name in ("train.jsonl", "rows.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def configured(folder: Path) -> None:
    """And a configuration for them."""
    reviews(folder)
    tiny.config(folder, run={"out": "runs/mine"}).rename(folder / "my.toml")


def trained(folder: Path) -> None:
    """And a run of it."""
    configured(folder)
    assert main(["train", "my.toml", "--json", *SMALLER["train"]]) in (0, 3)


def ending(*more: str) -> Any:
    """A tokenizer that has an end, and knows ``more`` words."""
    tokenizer = tiny.tokenizer(*more)
    tokenizer.add_special_tokens({"eos_token": "story"})
    return tokenizer


def prompts(folder: Path) -> None:
    """What the page about rewards has written before it trains."""
    tiny.save(folder / "my-model")
    ending().save_pretrained(folder / "my-model")
    functions, _ = snippets("docs/rewards.md", "python")
    assert functions.startswith("# rewards.py\n")
    (folder / "rewards.py").write_text(functions)
    (folder / "prompts.jsonl").write_text('{"prompt": "a fine film"}\n' * 20)


BEFORE: Mapping[str, Callable[[Path], None]] = {
    "README.md": reviews,
    "docs/doctor.md": reviews,
    "docs/rewards.md": prompts,
    "docs/use.md": trained,
    "docs/watch.md": configured,
}
"""What a page's reader has before its first line of shell, by page."""


def shell() -> list[Any]:
    """Pages with lines of shell; the doctor, who takes seconds, has been asked on the first."""
    late = {"docs/doctor.md": pytest.mark.full}
    return [pytest.param(page, marks=late.get(page, ())) for page in PAGES if snippets(page, "sh")]


def words_of(line: str) -> tuple[list[str], str, str]:
    """A line's words without comments, the file that it writes, and the command that reads what it prints."""
    words = shlex.split(line, comments=True)
    head, _, reader = line.partition(" | ")
    if reader:
        words = shlex.split(head, comments=True)
    if ">" in words:
        return words[: words.index(">")], words[-1], reader
    return words, "", reader


@pytest.mark.parametrize("page", shell())
def test_commands_are_followed(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if page in BEFORE:
        BEFORE[page](tmp_path)
    for line in "".join(snippets(page, "sh")).splitlines():
        words, file, reader = words_of(line)
        if any(start in line for start in ONLY_SHOWN):
            continue
        assert words[0] == "twinpass", f"{page}: nothing runs {line!r}"
        more = [
            *SMALLER.get(words[1], ()),
            *(FIRST_REWARD if page == "docs/rewards.md" and words[1] == "train" else ()),
        ]
        capsys.readouterr()
        assert main([*words[1:], *more]) in (0, 3), line
        said = capsys.readouterr().out
        if file:
            Path(file).write_text(said)
        if reader and shutil.which(shlex.split(reader)[0]):
            subprocess.run(shlex.split(reader), input=said, text=True, check=True, capture_output=True)


CONFIGURATIONS = [
    pytest.param(page, number, id=f"{page}-{number}")
    for page in PAGES
    if (page, "toml") not in RUN_BY
    for number in range(len(snippets(page, "toml")))
]

ALL_FIELDS = {
    **{"premise": "a fine film", "question": "story", "choice1": "great", "choice2": "dull"},
    **{"title": "a film", "summary": "fine"},
}
"""Fields of the rows on docs/rows.md, beside ``text`` and ``label``."""


def written(page: str, number: int, folder: Path) -> tuple[Path, dict[str, Any]]:
    """A block with what else a configuration needs, and the block."""
    whole = tomllib.loads(tiny.config(folder).read_text())
    given = tomllib.loads(snippets(page, "toml")[number])
    kind = "activated" if given.get("reuse", {}).get("policy") == "activated" else "full"
    beside = {name: whole[name] for name in ("model", "task", "run")} | {"trainable": {"kind": kind}}
    path = folder / "page.toml"
    path.write_text(tomli_w.dumps(beside | given))
    return path, given


@pytest.mark.parametrize(("page", "number"), CONFIGURATIONS)
def test_configurations_are_valid(page: str, number: int, tmp_path: Path) -> None:
    path, given = written(page, number, tmp_path)
    resolved = load_config(path).values
    for section, keys in given.items():
        own = {key: value for key, value in keys.items() if not isinstance(value, dict)}
        assert section == "task" or resolved[section].items() >= own.items()


@pytest.mark.full
@pytest.mark.parametrize(("page", "number"), [each for each in CONFIGURATIONS if each.values[0] != "docs/sglang.md"])
def test_configurations_train(page: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those for SGLang begin the runs of tests/engines/sglang."""
    monkeypatch.chdir(tmp_path)
    path, _ = written(page, number, tmp_path)
    ending("0", "1", "Yes", "No").save_pretrained(tmp_path / "model")
    Path("rows.jsonl").write_text("".join(json.dumps({**row, **ALL_FIELDS}) + "\n" for row in tiny.rows(12)))
    rte = "".join(
        json.dumps({**ALL_FIELDS, "hypothesis": "dull", "idx": i, "label": ["entailment", "not_entailment"][i % 2]})
        + "\n"
        for i in range(12)
    )
    Path("data/RTE").mkdir(parents=True)
    Path("data/RTE/train.jsonl").write_text(rte)
    small = [
        "optimizer.steps=2",
        "optimizer.batch_size=2",
        "optimizer.lr=1e-3",
        "run.eval_every=0",
        f"run.out={tmp_path}/run",
    ]
    assert main(["train", str(path), "--json", *(part for each in small for part in ("--set", each))]) in (0, 3)


def test_the_callbacks_on_the_page_are_called(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = snippets("docs/watch.md", "python")
    names: dict[str, Any] = {
        "twinpass": twinpass,
        "model": tiny.model(),
        "tokenizer": tiny.tokenizer(),
        "rows": tiny.rows(6),
    }
    prompt = {"prompt": "Review: {text}", "suffix": " Sentiment:", "options": [" bad", " good"]}
    names["prompt"] = {
        **prompt,
        "trainable": twinpass.Lora(rank=2),
        "optimizer": twinpass.Sgd(lr=1e-3, steps=2, batch_size=2),
    }
    exec(code.replace("runs/mine", str(tmp_path / "run")), names)
    assert names["summary"]["steps"] == 2
    assert capsys.readouterr().out.count("'step':") >= 3


def test_no_block_is_left_out() -> None:
    for path in (
        *ROOT.glob("*.md"),
        *(each for top in ("benchmarks", "docs", "examples", "tests") for each in (ROOT / top).rglob("*.md")),
    ):
        outside = FENCED.sub("", path.read_text(encoding="utf-8"))
        assert not re.search(r"^\s*(```|~~~)", outside, re.MULTILINE), f"{path}: a fence that nobody finds"
        assert str(path.relative_to(ROOT)) in PAGES or "```" not in path.read_text(encoding="utf-8"), path
    for page in PAGES:
        assert not unfenced(page) or page.startswith("docs/maths/"), page
        for language in {language for language, _ in blocks(page)}:
            assert language in ("sh", "toml", "python", "text"), f"{page}: nobody runs blocks of {language!r}"
            if (page, language) in RUN_BY:
                assert f'snippets("{page}", "{language}")' in (ROOT / RUN_BY[page, language]).read_text()
            else:
                assert (page, language) == ("docs/watch.md", "python") or language != "python", (
                    f"{page}: nobody runs its Python"
                )
    assert all(any(start in text for page in PAGES for text in snippets(page, "sh")) for start in ONLY_SHOWN)


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/log.md"])
def test_names_of_the_package_are_there(page: str) -> None:
    """Classes and functions, that is: modules and groups of entry points are tried where they are used."""
    shown = "\n".join([*quoted(page), *snippets(page, "python")])
    names = re.findall(r"\btwinpass\.([A-Z]\w*|[a-z_]+(?=\())", shown)
    assert [name for name in names if name not in twinpass.__all__] == []
