"""The page says of each processor which way to multiply is faster, and which is taken, as its file has it."""

from collections.abc import Mapping
from typing import Any

import page_products
import pytest


def result(**times: float) -> dict[str, Any]:
    """A file of a processor, with medians of turns; seconds say something else, as they may on a noisy machine."""
    taken = {name.replace("_", " ").replace("bfloat16 ", "bfloat16, "): value for name, value in times.items()}
    spread = {"lower_quartile": 1.0, "upper_quartile": 3.0}
    return {
        "rows": 640,
        "machine": {"processor": "A Processor", "cores": 2},
        "commit": "abc",
        "seconds": {name: {"median": 2.0, **spread} for name in taken},
        "times_float32": {name: {"median": value, **spread} for name, value in taken.items()},
    }


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ({"written_float32": 1.5, "bfloat16_amx": 0.5}, "Forming is faster, and taken: writing takes 1.50 times as long."),
        ({"written_float32": 0.5, "bfloat16_amx": 0.5}, "Writing is faster, 0.50 of the time; forming is taken all the same"),
        ({"bfloat16_amx": 0.5, "bfloat16_float32": 0.25}, "bfloat16 takes 0.25 of the time of float32 at the best, and is offered"),
        ({"bfloat16_float32": 1.25}, "bfloat16 takes 1.25 times as long as float32, and is refused."),
    ],
)  # fmt: skip
def test_a_processor_has_its_verdict(times: Mapping[str, float], said: str) -> None:
    assert said in page_products.verdict(result(float32=1.0, **times))


def test_each_processor_has_its_table_with_times_turn_by_turn() -> None:
    one, other = result(float32=1.0, bfloat16_amx=0.5), result(float32=1.0, bfloat16_float32=1.25)
    del other["times_float32"]
    section = page_products.section({"products": one, "products-old": other})
    assert "A Processor, cores used: 2, commit abc ([products.json](../benchmarks/results/products.json))" in section
    assert "(../benchmarks/results/products-old.json)" in section
    assert "| bfloat16, amx | 2000.0 | 1000.0 to 3000.0 | 0.50 |" in section
    assert "| bfloat16, float32 | 2000.0 | 1000.0 to 3000.0 | 1.00 |" in section, "an older file has medians alone"
    assert page_products.section({}) == ""
