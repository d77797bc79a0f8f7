"""The page's Python for SGLang runs as it stands, on a real SGLang, and writes what the trained model writes."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from pages import PAGES, snippets
from real_sglang import ARGUMENTS
from trained import by_hugging_face

import twinpass
from twinpass.cli.main import main
from twinpass.engine.sglang.examine import require_fitting_arguments
from twinpass.model.defaults import ATTENTION, OUTPUTS
from twinpass.model.trainable import Informed, Lora

PROMPT = "Review: a fine film\nSentiment:"
ON_A_CPU = """
import functools
import sglang
sglang.Engine = functools.partial(sglang.Engine, **{!r})
"""
"""What a machine without a GPU needs besides what the page says."""


def snippet() -> str:
    (found,) = (code for code in snippets("docs/use.md", "python") if "import sglang" in code)
    return found


def said(code: str, folder: Path, **arguments: Any) -> list[str]:
    """What a script prints, as the lines that it marks; SGLang's processes begin by importing it."""
    script = folder / "script.py"
    given = ARGUMENTS | {"grammar_backend": "none", "skip_server_warmup": True} | arguments
    script.write_text(ON_A_CPU.format(given) + code.replace("print(", "print('said:', "))
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


def trained(folder: Path, place: Path, **trainable: Any) -> Path:
    """A run whose adapter has moved far enough to write something else than its base model."""
    (place / "my-model").symlink_to(folder)
    rows = [{"text": "a fine film", "label": 1}, {"text": "dull", "label": 0}]
    (place / "rows.json").write_text(str(rows).replace("'", '"'))
    values = {
        "model": {"path": "my-model"},
        "trainable": trainable,
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


def test_the_python_on_the_page_runs(folder: Path, tmp_path: Path) -> None:
    run, place = trained(folder, tmp_path, kind="lora"), tmp_path
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


def test_and_serves_an_activated_adapter(folder: Path, tmp_path: Path) -> None:
    """It acts where the suffix stands, also where SGLang reads prompts a few tokens at a time; anywhere else it would write other texts."""
    run = trained(folder, tmp_path, kind="activated", targets="outputs", first=-4)
    assert main(["export", str(run), "--format", "peft", "--out", str(tmp_path / "adapter"), "--json"]) == 0
    prompts = [PROMPT, "Review: dull and slow\nSentiment: bad\nReview: a fine film\nSentiment:", "Once upon a time"]
    own = twinpass.load(run).generate(prompts, 8)
    model = twinpass.load_model(str(folder))
    plain = [by_hugging_face(*model, prompt, 8) for prompt in prompts]
    assert [a == b for a, b in zip(own, plain, strict=True)] == [False, False, True]
    code = snippet().replace(repr(PROMPT), repr(prompts)).replace('"Review: a fine film\\nSentiment:"', repr(prompts))
    code = code.replace('print(answer["text"])', 'print([each["text"] for each in answer])')
    assert said(code, tmp_path, chunked_prefill_size=4) == [repr(own)]


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
        for trainable, targets in ((Lora(rank=8), ATTENTION), (Informed(), OUTPUTS)):
            require_fitting_arguments(vars(given), "float32", trainable, targets)
