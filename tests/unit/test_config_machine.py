"""What a configuration asks of the machine that it is read on."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from configurations import Values, minimal, problems_of

from twinpass.config.load import parse

pytestmark = pytest.mark.usefixtures("any_processor")


def test_products_in_bfloat16_are_refused_where_they_save_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = minimal(engine={"compute_dtype": "bfloat16"})
    parse(values, "it.toml", Path("/nowhere"))
    monkeypatch.setattr("twinpass.config.engines.multiplies_tiles", lambda: False)
    (problem,) = problems_of(values)
    assert problem.startswith("[engine] compute_dtype")
    assert "AMX" in problem
    assert "leave it out" in problem
    parse(minimal(engine={"compute_dtype": "float32"}), "it.toml", Path("/nowhere"))


@pytest.mark.parametrize(
    ("gpu", "changes", "words"),
    [
        (False, {"engine": {"device": "cuda"}}, ('[engine] device: "cuda" needs a GPU that torch can use', '"cpu"')),
        (True, {"model": {"dtype": "float64"}}, ("[model] dtype: weights on a GPU", '[engine] device = "cpu"')),
        (
            True,
            {"engine": {"compute_dtype": "bfloat16"}},
            ('[engine] compute_dtype: "bfloat16" runs on the CPU only', 'device = "cpu"'),
        ),
    ],
    ids=str,
)
def test_what_a_gpu_cannot_do(
    gpu: bool, changes: dict[str, Values], words: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    (problem,) = problems_of(minimal(**changes))
    for word in words:
        assert word in problem
    engine = {"engine": {**changes.get("engine", {}), "device": "cpu"}}
    parse(minimal(**(changes | engine)), "it.toml", Path("/nowhere"))
