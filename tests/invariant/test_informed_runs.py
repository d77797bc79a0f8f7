"""Runs along fitted directions: they learn, continue and replay to the same bits, and lost directions are an error."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from twinpass import Informed, finetune
from twinpass.cli.main import main
from twinpass.errors import DataError

ROWS = tiny.rows(40)
STEPS = 3


def configured(folder: Path) -> Path:
    return tiny.config(
        folder,
        trainable=tiny.INFORMED,
        estimator={"kind": "gauss_newton", "probes": 3},
        optimizer={"steps": STEPS, "batch_size": 4},
        epsilon={"value": 1e-2},
        run={"out": str(folder / "run"), "seed": 3, "eval_every": 1},
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("informed")
    assert main(["train", str(configured(folder)), "--json"]) == 0
    return folder


def weights(run: Path) -> dict[str, Any]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def same(a: Path, b: Path) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def test_the_journal_names_every_file_of_directions(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "run" / "journal.jsonl").read_text().splitlines()]
    named = [line["space"][:16] for line in lines if line.get("kind") == "step"]
    assert len(named) == STEPS
    assert {file.stem for file in (finished / "run" / "spaces").iterdir()} == set(named)
    assert any(bool(tensor.any()) for name, tensor in weights(finished / "run").items() if "lora_A" in name)


@pytest.mark.parametrize("kept", range(1, 7))
def test_a_run_continues_to_the_same_bits(finished: Path, tmp_path: Path, kept: int) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    shutil.rmtree(run / "adapter")
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    (run / "journal.jsonl").write_text("".join(lines[: kept + 1]))
    assert main(["train", "--resume", str(run), "--json"]) == 0
    assert (run / "journal.jsonl").read_text() == "".join(lines)
    assert same(run, finished / "run")


def test_a_run_is_replayed_to_the_same_bits(finished: Path, tmp_path: Path) -> None:
    assert main(["replay", str(finished / "run"), "--step", str(STEPS), "--out", str(tmp_path / "out"), "--json"]) == 0
    assert same(tmp_path / "out", finished / "run")


def test_lost_directions_are_an_error(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    for file in (run / "spaces").iterdir():
        file.unlink()
    assert main(["replay", str(run), "--step", "1", "--out", str(tmp_path / "out")]) == 2
    assert "the directions that the journal names cannot be read" in capsys.readouterr().err


def test_it_learns_what_a_row_says(tmp_path: Path) -> None:
    """Whether a text holds fine or dull, from a random model; nothing is set but the task."""
    summary = finetune(
        tiny.model(),
        tiny.tokenizer(),
        ROWS,
        tiny.rows(20),
        prompt="Review: {text}",
        suffix=" Sentiment:",
        options=[" bad", " good"],
        trainable=Informed(layers=1),
        out=tmp_path / "run",
    )
    assert summary["base_metric"] < 0.9
    assert summary["final_metric"] == 1.0


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"engine": {"kind": "sglang"}, "model": {"dtype": "bfloat16"}}, "SGLang holds adapters in bfloat16"),
        ({"estimator": {"kind": "jvp"}}, "fitted directions, lane by lane in one pass"),
        (
            {"estimator": {"kind": "spsa"}, "engine": {"perturbation": "inplace"}},
            "fitted directions, lane by lane in one pass",
        ),
        (
            {"trainable": {"kind": "full"}, "estimator": {"kind": "gauss_newton"}, "reuse": {"policy": "reflected"}},
            "which an approximation spoils",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, sections: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny.config(tmp_path, **({"trainable": {"kind": "informed", "layers": 1}} | sections))
    assert main(["train", str(path)]) == 2
    assert says in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "run").exists()


def test_prompts_that_end_otherwise_are_refused(tmp_path: Path) -> None:
    rows = [{"text": "a fine film", "label": 1}, {"text": "dull story", "label": 0}]
    with pytest.raises(
        DataError, match=r"train, row 2: the prompt ends with token .* let task\.suffix end all prompts alike"
    ):
        finetune(
            tiny.model(),
            tiny.tokenizer(),
            rows,
            prompt="Review: {text}",
            options=[" bad", " good"],
            trainable=Informed(layers=1),
            out=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()
