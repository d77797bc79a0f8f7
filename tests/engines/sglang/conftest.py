"""One real SGLang for the session, on SmolLM2-135M in float32."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from real_sglang import ARGUMENTS, HOOKS
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinpass.engine.sglang.in_process import InProcess
from twinpass.engine.sglang.server import Server
from twinpass.model.load import load


@pytest.fixture(scope="session")
def loaded() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load("smollm2")


@pytest.fixture(scope="session")
def folder(loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a Hugging Face folder, as SGLang reads it."""
    path = tmp_path_factory.mktemp("smollm2")
    for part in loaded:
        part.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows") / "rows"


@pytest.fixture(scope="session")
def server(folder: Path, counted: Path) -> Iterator[Server]:
    sys.path.insert(0, str(HOOKS))  # SGLang's processes get a copy
    hook = {
        "target_modules": ["model.layers.7.mlp"],
        "hook_factory": "count_rows:count",
        "config": {"path": str(counted)},
    }
    running = Server(InProcess(str(folder), {**ARGUMENTS, "forward_hooks": [hook]}))
    yield running
    running.close()


@pytest.fixture
def rows(counted: Path) -> Callable[[], int]:
    """How many rows layer 7 ran since the last call."""
    counted.write_text("")

    def since() -> int:
        total = sum(map(int, counted.read_text().split()))
        counted.write_text("")
        return total

    return since
