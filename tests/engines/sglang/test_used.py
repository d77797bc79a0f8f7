"""The page's Python for SGLang runs as it stands, on a real SGLang, and writes what the trained model writes."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
from pages import PAGES, snippets
from real_sglang import ARGUMENTS
from trained import by_hugging_face

import twinpass
from twinpass.cli.main import main
from twinpass.engine.sglang.examine import require_fitting_arguments
from twinpass.model.trainable import Informed, Lora

PROMPT = "Review: a fine film\nSentiment:"
ON_A_CPU = f"""
import functools
import sglang
sglang.Engine = functools.partial(sglang.Engine, **{ARGUMENTS | {"grammar_backend": "none", "skip_server_warmup": True}!r})
"""
"""What a machine without a GPU needs besides what the page says."""


def snippet() -> str:
    (found,) = (code for code in snippets("docs/use.md", "python") if "import sglang" in code)
    return found


def said(code: str, folder: Path) -> list[str]:
    """What a script prints, as the lines that it marks; SGLang's processes begin by importing it."""
    script = folder / "script.py"
    script.write_text(ON_A_CPU + code.replace("print(", "print('said:', "))
    paths = [str(Path(path).resolve()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    environment = {**os.environ, "SGLANG_USE_CPU_ENGINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    ran = subprocess.run(
        [sys.executable, str(script)],
        check=False,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return [line.partition("said: ")[2] for line in ran.stdout.splitlines() if line.startswith("said: ")]


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter that has moved far enough to write something else than its base model."""
    place = tmp_path_factory.mktemp("used")
    (place / "my-model").symlink_to(folder)
    rows = [{"text": "a fine film", "label": 1}, {"text": "dull", "label": 0}]
    (place / "rows.json").write_text(str(rows).replace("'", '"'))
    values = {
        "model": {"path": "my-model"},
        "trainable": {"kind": "lora"},
        "task": {
            "train": "rows.json",
            "eval": "rows.json",
            "prompt": "Review: {text}\n",
            "suffix": "Sentiment:",
            "options": [" bad", " good"],
        },
        "optimizer": {"lr": 0.05, "steps": 8, "batch_size": 2, "guard_loss": 0.0, "guard_metric": 0.0},
        "run": {"out": str(place / "runs/mine"), "keep": "last"},
    }
    (place / "my.toml").write_text(tomli_w.dumps(values))
    assert main(["train", str(place / "my.toml"), "--json"]) in (0, 3)
    return place / "runs/mine"


def test_the_python_on_the_page_runs(run: Path, folder: Path) -> None:
    place = run.parents[1]
    assert main(["export", str(run), "--format", "peft", "--out", str(place / "adapter"), "--json"]) == 0
    code = snippet()
    (own,) = twinpass.load(run).generate([PROMPT], 8)
    assert '"max_new_tokens": 8' in code
    assert repr(PROMPT)[1:-1] in code
    assert said(code.replace('print(answer["text"])', 'print(repr(answer["text"]))'), place) == [repr(own)]
    base = by_hugging_face(*twinpass.load_model(str(folder)), PROMPT, 8)
    assert base != own, "the adapter makes a difference"
    merged = code.replace('"my-model"', '"merged"')
    merged = re.sub(r", enable_lora=True, lora_paths=\{.*?\}|, lora_path=\"mine\"", "", merged)
    assert main(["export", str(run), "--format", "hf", "--merge", "--out", str(place / "merged"), "--json"]) == 0
    assert said(merged.replace('print(answer["text"])', 'print(repr(answer["text"]))'), place) == [repr(own)]


LAUNCHED = [
    line for page in PAGES for text in snippets(page, "sh") for line in text.splitlines() if "sglang.launch" in line
]


@pytest.mark.parametrize("line", LAUNCHED)
def test_the_commands_on_the_pages_are_sglangs(line: str) -> None:
    from sglang.srt.server_args import ServerArgs

    grammar = argparse.ArgumentParser(exit_on_error=False)
    ServerArgs.add_cli_args(grammar)
    words = shlex.split(line)
    given = grammar.parse_args(words[words.index("sglang.launch_server") + 1 :])
    if "MODEL" in words:
        for trainable in (Lora(rank=8), Informed()):
            require_fitting_arguments(vars(given), "float32", trainable)
