"""One real SGLang for the session, on the lower layers of SmolLM2-135M in float32: what is compared does not depend on their number."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from real_sglang import ARGUMENTS, HOOKS, LAYERS
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinpass.engine.sglang.in_process import InProcess
from twinpass.engine.sglang.server import Server
from twinpass.model.load import load


@pytest.fixture(scope="session")
def loaded() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokenizer = load("smollm2")
    layers = cast(Any, model).model.layers
    del layers[LAYERS:]
    model.config.num_hidden_layers = LAYERS
    return model, tokenizer


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
        "target_modules": [f"model.layers.{LAYERS - 1}.mlp"],
        "hook_factory": "count_rows:count",
        "config": {"path": str(counted)},
    }
    running = Server(InProcess(str(folder), {**ARGUMENTS, "forward_hooks": [hook]}))
    yield running
    running.close()


@pytest.fixture
def rows(counted: Path) -> Callable[[], int]:
    """How many rows the last layer ran since the last call."""
    counted.write_text("")

    def since() -> int:
        total = sum(map(int, counted.read_text().split()))
        counted.write_text("")
        return total

    return since
