"""A run on real SGLang from a configuration: it learns, and its journal rebuilds the adapter on the embedded engine, to the bit."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tensors import same
from torch import Tensor

from twinpass.cli.main import main as twinpass
from twinpass.train.journal import read

CONFIG = Path(__file__).parents[3] / "examples" / "reviews-mezo.toml"
STEPS = 30
SETTINGS = [
    "engine.kind=sglang",
    f"optimizer.steps={STEPS}",
    "optimizer.schedule=constant",
    "estimator.probes=2",
    "task.train_rows=96",
    "task.eval_rows=100",
    "run.eval_every=0",
    "reuse.budget=1GiB",
]


def train(out: Path, *settings: str) -> int:
    words = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
    return twinpass(["train", str(CONFIG), *words, "--set", f"run.out={out}", "--json"])


def adapter(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sglang") / "run"
    assert train(folder) == 0
    return folder


def summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return content


def test_accuracy_rises(run: Path) -> None:
    assert summary(run)["final_metric"] > summary(run)["base_metric"] + 0.03


def test_the_journal_rebuilds_the_adapter_on_the_embedded_engine(run: Path, tmp_path: Path) -> None:
    assert twinpass(["replay", str(run), "--out", str(tmp_path)]) == 0
    assert same(adapter(run / "adapter"), adapter(tmp_path / "adapter"))


def test_losses_are_the_embedded_engines(run: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "embedded", "engine.kind=torch", "optimizer.steps=3", "task.eval_rows=8") == 0
    theirs, ours = (
        [record["losses"] for record in read(folder / "journal.jsonl").records if record["kind"] == "step"]
        for folder in (tmp_path / "embedded", run)
    )
    assert ours[:3] == [[pytest.approx(pair, abs=1e-4) for pair in step] for step in theirs]
