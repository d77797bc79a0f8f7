"""The page of models says what the result file holds, and a type that breaks is a line in it."""

import json
import sys
from pathlib import Path
from typing import Any

import freshness
import models
import models_tiny
import page_models
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/models.md").read_text()


def found(**lacking: str) -> dict[str, Any]:
    return {
        trial: {"works": False, "told": True, "why": lacking[trial]} if trial in lacking else {"works": True}
        for trial in ("built", *page_models.COLUMNS)
        if trial == "built" or "built" not in lacking
    }


def test_a_type_is_among_those_that_do_everything_or_has_a_line_or_was_not_tried() -> None:
    result = {
        "types": {
            "llama": found(),
            "opt": found(),
            "mamba": found(
                packs="its attention does not go through the attention registry",
                full="what enters modules is seen in packed passes, which it does not run in (...)",
            ),
            "odd": found(built="KeyError: 'odd'"),
            "late": {"built": {"works": True}, "stopped": "no end after 60 s of the processor"},
            "dead": {"stopped": "the process died of SIGSEGV"},
        },
        "versions": {"transformers": "5", "peft": "0"},
        "commit": "abc",
    }
    text = page_models.section(result)
    assert "**Everything** (2): llama, opt.\n" in text
    assert "| mamba | no | yes | yes | yes | yes | no | yes | yes | attention of its own, or none |" in text
    assert "| late |" + " no |" * 8 + " no end after 60 s of the processor |" in text
    assert "**Not tried** (2)" in text
    assert "odd, dead (the process died of SIGSEGV)" in text


def test_what_stands_between_the_markers_is_put_there_again() -> None:
    page = f"above\n{page_models.BEGIN}old\n{page_models.END}below\n"
    once = page_models.put(page, "new")
    assert once == f"above\n{page_models.BEGIN}\nnew\n{page_models.END}below\n"
    assert page_models.put(once, "new") == once


def test_the_page_is_what_the_file_says() -> None:
    result = json.loads((freshness.RESULTS / "models.json").read_text())
    assert page_models.put(PAGE, page_models.section(result)) == PAGE
    assert not result["commit"].endswith("-dirty")
    assert len(result["types"]) > 150
    assert all(f"| {name} |" in PAGE for name in page_models.COLUMNS.values() if name in ("kept", "random"))


def test_a_process_that_dies_or_falls_silent_is_a_line_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(
        """\
import json, os, signal, sys, time
for kind in sys.argv[2:]:
    print(json.dumps([kind, "built", {"works": True}]), flush=True)
    if kind == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "ends":
        sys.exit(3)
    if kind == "hangs":
        time.sleep(600)
    print(json.dumps([kind, "", None]), flush=True)
"""
    )
    monkeypatch.setattr(models, "__file__", str(worker))
    monkeypatch.setattr(models, "SECONDS", 0.5)
    built = {"built": {"works": True}}
    assert models.found(["one", "dies", "two", "hangs", "ends", "three"]) == {
        "one": built,
        "dies": {**built, "stopped": "the process died of SIGKILL"},
        "two": built,
        "hangs": {**built, "stopped": "no sign of it for 5.0 s"},
        "ends": {**built, "stopped": "the process ended with 3"},
        "three": built,
    }


@pytest.mark.skipif(sys.platform == "win32", reason="no limits there")
def test_a_type_is_built_small_and_tried(tmp_path: Path) -> None:
    import models_tried

    came: dict[str, Any] = {}
    models_tried.tried("opt", tmp_path, came.__setitem__)
    assert [trial for trial, each in came.items() if not each["works"]] == []
    assert set(came) == {"built", *page_models.COLUMNS}
    assert came["built"]["parameters"] < 100_000
    models_tried.tried("nowhere", tmp_path, came.__setitem__)
    assert "nowhere" in came["built"]["why"]
    assert "opt" in models_tiny.TYPES
