"""A run along fitted directions on a real SGLang has the embedded engine's journal, continues, and is replayed without SGLang."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from real_sglang import LAYERS
from safetensors.torch import load_file
from torch import Tensor, equal

from twinpass.cli.main import main as twinpass
from twinpass.train.journal import read

CONFIG = Path(__file__).parents[3] / "examples" / "reviews.toml"
STEPS = 3
SETTINGS = [
    "trainable.kind=informed",
    f"trainable.layers={LAYERS // 2}",
    "trainable.rank=4",
    "estimator.probes=2",
    f"optimizer.steps={STEPS}",
    "optimizer.batch_size=8",
    "task.train_rows=48",
    "task.eval_rows=8",
    "run.eval_every=0",
    "reuse.budget=256MiB",
]
NEAR = 1e-4
"""Between losses here and there; a slope is a difference of two, over two eps of 1e-2."""


def train(folder: Path, out: Path, *settings: str) -> Path:
    given = [*SETTINGS, f"model.path={folder}", f"run.out={out}", *settings]
    assert twinpass(["train", str(CONFIG), *(word for one in given for word in ("--set", one)), "--json"]) in (0, 3)
    return out


def steps(run: Path) -> list[dict[str, Any]]:
    return [record for record in read(run / "journal.jsonl").records if record["kind"] == "step"]


def adapter(run: Path) -> dict[str, Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference, beside the largest number."""
    assert one.keys() == other.keys()
    largest = max(float(tensor.abs().max()) for tensor in other.values())
    return max(float((one[name] - other[name]).abs().max()) for name in one) / largest


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(folder, tmp_path_factory.mktemp("sglang") / "run", "engine.kind=sglang")


@pytest.fixture(scope="module")
def embedded(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(folder, tmp_path_factory.mktemp("embedded") / "run")


def test_the_journal_is_the_embedded_engines(run: Path, embedded: Path) -> None:
    """The first directions to the bit; then gains differ by SGLang's rounding, and with them what is fitted next."""
    ours, theirs = steps(run), steps(embedded)
    assert len(ours) == len(theirs) == STEPS
    assert ours[0]["space"] == theirs[0]["space"]
    for one, other in zip(ours, theirs, strict=True):
        for name in ("seeds", "eps", "lr"):
            assert one[name] == other[name]
        assert one["losses"] == [pytest.approx(pair, abs=NEAR) for pair in other["losses"]]
        assert one["gradients"] == pytest.approx(other["gradients"], abs=NEAR / other["eps"])
    print("APART", apart(adapter(run), adapter(embedded)), *zip(ours, theirs))
    assert apart(adapter(run), adapter(embedded)) < 1e-2


def test_the_journal_rebuilds_the_adapter_without_sglang(run: Path, tmp_path: Path) -> None:
    assert twinpass(["replay", str(run), "--out", str(tmp_path)]) == 0
    ours, theirs = adapter(run), adapter(tmp_path)
    assert all(equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_that_was_cut_off_continues(run: Path, tmp_path: Path) -> None:
    """Its last steps are lost, and run again, along directions that are there as they were up to there."""
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    shutil.rmtree(cut / "adapter")
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    kept = lines[: next(i for i, line in enumerate(lines) if '"step":1' in line.replace(" ", "") and '"seeds"' in line)]
    (cut / "journal.jsonl").write_text("".join(kept))
    assert twinpass(["train", "--resume", str(cut), "--json"]) in (0, 3)
    assert (cut / "journal.jsonl").read_text().startswith("".join(kept))
    print("APART", apart(adapter(cut), adapter(run)))
    for one, other in zip(steps(cut), steps(run), strict=True):
        assert one["losses"] == [pytest.approx(pair, abs=NEAR) for pair in other["losses"]]
    assert apart(adapter(cut), adapter(run)) < 1e-2
