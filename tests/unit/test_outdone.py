"""Options that begin with all of another are spoken of, as the sum of their log-probabilities never is the larger."""

import re
from pathlib import Path
from typing import Any

import pytest
import tiny

import twinpass
from twinpass.task.example import Example
from twinpass.task.outdone import outdone

OUTDONE = "an option begins with all of another"


def example(place: str, *options: tuple[int, ...]) -> Example:
    return Example((1, 2), options, 0, 2, place)


def test_rows_whose_options_begin_with_another_are_counted() -> None:
    apart = [example("row 1", (3,), (4, 5)), example("row 2", (3, 4), (3, 5))]
    assert outdone(apart) == []
    (note,) = outdone([*apart, example("row 3", (3, 4), (5,), (3,)), example("row 4", (3,), (3, 4))])
    assert note.startswith(f"in 2 of 4 rows (row 3 is the first) {OUTDONE}")


@pytest.mark.parametrize(("objective", "said"), [(None, True), (twinpass.Choice(score="mean"), False)])
def test_it_is_said_where_sums_are_compared(
    objective: Any, said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": row["text"], "label": ("fine", "fine film")[row["label"]]} for row in tiny.rows(8)]
    twinpass.finetune(
        tiny.model(),
        tiny.tokenizer(),
        rows,
        rows,
        prompt="Review: {text}",
        suffix=" Sentiment:",
        options=[" fine", " fine film"],
        objective=objective,
        optimizer=twinpass.AdamW(steps=1, batch_size=2),
        out=tmp_path / "run",
    )
    assert (OUTDONE in re.sub(r"\s+", " ", capsys.readouterr().err)) is said
