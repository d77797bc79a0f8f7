"""``twinpass.finetune`` in bfloat16 products: what it takes, and what it refuses before anything is written."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from twinpass import Full, OneSided, Sgd, finetune
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
