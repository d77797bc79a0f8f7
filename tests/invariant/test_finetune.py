"""``twinpass.finetune`` in bfloat16 products, with steps that end by themselves, and what it refuses before anything is written."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from twinpass import Accuracy, AdamW, Full, Lora, OneSided, ReflectedReuse, Sgd, Spsa, finetune
from twinpass.errors import ConfigError
from twinpass.settings import ComputeDtype

pytestmark = pytest.mark.usefixtures("any_processor")

TASK: Any = {"prompt": "Review: {text}", "options": [" bad", " good"]}


def losses(run: Path) -> list[float]:
    lines = (run / "journal.jsonl").read_text().splitlines()
    return [loss for line in lines if (record := json.loads(line))["kind"] == "step" for loss in record["losses"][0]]


def test_products_in_bfloat16_train(tmp_path: Path) -> None:
    found = []
    choices: tuple[ComputeDtype | None, ...] = (None, "bfloat16")
    for dtype in choices:
        out = tmp_path / str(dtype)
        model, optimizer = tiny.model(), Sgd(lr=1e-5, steps=2, batch_size=4)
        finetune(
            model,
            tiny.tokenizer(),
            tiny.rows(8),
            **TASK,
            out=out,
            trainable=Full(),
            optimizer=optimizer,
            compute_dtype=dtype,
        )
        found.append(losses(out))
    own, lower = found
    assert own != lower, "the setting has an effect"
    assert own == [pytest.approx(loss, rel=0.05) for loss in lower]


@pytest.mark.parametrize("given", [{"estimator": OneSided()}, {"perturbation": "inplace"}])
def test_what_it_cannot_keep_apart_is_refused(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="compute_dtype"):
        finetune(
            tiny.model(),
            tiny.tokenizer(),
            tiny.rows(8),
            **TASK,
            out=tmp_path / "x",
            **given,
            compute_dtype="bfloat16",
        )
    assert not (tmp_path / "x").exists()


def test_steps_that_end_by_themselves(tmp_path: Path) -> None:
    """They end long before 2,000, as evaluations gain nothing; what is written is what the word stood for."""
    automatic: Any = {"steps": "auto"}
    options = {
        **TASK,
        "trainable": Lora(rank=2),
        "optimizer": AdamW(lr=1e-9, batch_size=2, **automatic),
        "eval_every": 1,
    }
    summary = finetune(tiny.model(), tiny.tokenizer(), tiny.rows(6), tiny.rows(4), out=tmp_path, **options)
    assert (summary["steps"], summary["settled"]) == (6, True)
    assert 'schedule = "plateau"' in (tmp_path / "config.toml").read_text()
    again = finetune(tiny.model(), tiny.tokenizer(), tiny.rows(6), tiny.rows(4), out=tmp_path, **options, resume=True)
    assert again["steps"] == 6


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"noise": "gaussian"}, "[engine] noise"),
        ({"perturbation": "inplace"}, "[engine] perturbation"),
        ({"reuse": ReflectedReuse()}, "[reuse] policy"),
        ({"objective": Accuracy()}, "[objective] kind"),
    ],
)
def test_what_is_for_probes_is_not_the_optimizers_fault(given: dict[str, Any], place: str, tmp_path: Path) -> None:
    run: dict[str, Any] = {**TASK, **given, "out": tmp_path / "x"}
    with pytest.raises(ConfigError) as refused:
        finetune(tiny.model(), tiny.tokenizer(), tiny.rows(8), **run, optimizer=AdamW())
    assert (
        f'{place}: it is for random directions, and [optimizer] kind "adamw" steps along whole gradients; leave one of the two out'
        in refused.value.problems
    )
    assert not any(problem.startswith("[optimizer]") for problem in refused.value.problems)
    assert not (tmp_path / "x").exists()
    with pytest.raises(ConfigError, match=r'set \[estimator\] kind = "backprop"'):
        finetune(
            tiny.model(),
            tiny.tokenizer(),
            tiny.rows(8),
            **TASK,
            estimator=Spsa(),
            optimizer=AdamW(),
            out=tmp_path / "x",
        )
