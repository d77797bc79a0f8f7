"""A run along fitted directions on a real SGLang has the embedded engine's journal, continues, and is replayed without SGLang."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from real_sglang import LAYERS
from safetensors.torch import load_file
from sglang_runs import begin, die_after
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
    "estimator.damping=1e3",
    "optimizer.lr=0.2",
    f"optimizer.steps={STEPS}",
    "optimizer.batch_size=8",
    "task.train_rows=48",
    "task.eval_rows=8",
    "run.eval_every=0",
    "run.keep=last",
    "reuse.budget=256MiB",
]
"""Short steps, as so few of a model's layers are wrong and sure of it, where a whole step goes far."""
NEAR = 5e-5
"""Nats between losses here and there, in float32; a slope is a difference of two, over two eps."""
MOVED = 1e-3
"""What rounding may make of directions and adapters by the last step, beside the largest number in them."""


def words(folder: Path, out: Path, *settings: str) -> list[str]:
    given = [*SETTINGS, f"model.path={folder}", f"run.out={out}", *settings]
    return [str(CONFIG), *(word for one in given for word in ("--set", one))]


def train(folder: Path, out: Path, *settings: str) -> Path:
    assert twinpass(["train", *words(folder, out, *settings), "--json"]) in (0, 3)
    return out


def steps(run: Path) -> list[Mapping[str, Any]]:
    return [record for record in read(run / "journal.jsonl").records if record["kind"] == "step"]


def evaluations(run: Path) -> list[Mapping[str, Any]]:
    return [record for record in read(run / "journal.jsonl").records if record["kind"] == "evaluation"]


def adapter(run: Path) -> dict[str, Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def directions(run: Path) -> list[dict[str, Tensor]]:
    return [load_file(run / "spaces" / f"{step['space'][:16]}.safetensors") for step in steps(run)]


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
    """Up to rounding: here the first directions are fitted after an evaluation, so that tokens that all prompts share were read in other passes."""
    ours, theirs = steps(run), steps(embedded)
    assert len(ours) == len(theirs) == STEPS
    fitted = [apart(*pair) for pair in zip(directions(run), directions(embedded), strict=True)]
    assert fitted[0] < MOVED / 20
    assert max(fitted) < MOVED
    for one, other in zip(ours, theirs, strict=True):
        for name in ("seeds", "eps", "lr"):
            assert one[name] == other[name]
        assert one["losses"] == [pytest.approx(pair, abs=NEAR) for pair in other["losses"]]
        assert one["gradients"] == pytest.approx(other["gradients"], abs=NEAR / other["eps"])
        assert one["clipped"] == pytest.approx(other["clipped"], abs=NEAR / other["eps"])
    for one, other in zip(evaluations(run), evaluations(embedded), strict=True):
        assert one["metric"] == other["metric"]
        assert one["loss"] == pytest.approx(other["loss"], abs=10 * NEAR)
    assert apart(adapter(run), adapter(embedded)) < MOVED


def test_the_journal_rebuilds_the_adapter_without_sglang(run: Path, tmp_path: Path) -> None:
    assert twinpass(["replay", str(run), "--out", str(tmp_path)]) == 0
    ours, theirs = adapter(run), adapter(tmp_path)
    assert all(equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_survives_sglangs_death_in_its_own_process(folder: Path, run: Path, tmp_path: Path) -> None:
    """The scheduler is killed, as for want of memory. The run says so, does not wait for ever or vanish, and continues along its own directions."""
    import psutil

    died = tmp_path / "died"

    def kill(process: subprocess.Popen[str]) -> None:
        children = psutil.Process(process.pid).children(recursive=True)
        schedulers = [child for child in children if "scheduler" in " ".join([child.name(), *child.cmdline()])]
        assert schedulers, [child.cmdline() for child in children]
        schedulers[0].kill()

    process = begin(*words(folder, died, "engine.kind=sglang"))
    said = die_after(died, process, lambda: kill(process), least=1)
    assert "exit status -9" in said
    assert "--resume" in said
    kept = (died / "journal.jsonl").read_text()
    assert twinpass(["train", "--resume", str(died), "--json"]) in (0, 3)
    assert (died / "journal.jsonl").read_text().startswith(kept)
    for one, other in zip(steps(died), steps(run), strict=True):
        assert one["losses"] == [pytest.approx(pair, abs=NEAR) for pair in other["losses"]]
    assert apart(adapter(died), adapter(run)) < MOVED
