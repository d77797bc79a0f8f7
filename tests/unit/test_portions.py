"""Held-out rows are measured in portions, and come to the same whatever their size."""

import pytest
import tiny

from twinpass.engine.embedded.engine import TorchEngine
from twinpass.model.trainable import Lora
from twinpass.objective.choice import Choice
from twinpass.objective.goal import portions
from twinpass.objective.population import Population
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.rows import Row

ROWS = 23


def test_portions_are_all_rows_in_their_order() -> None:
    assert [list(part) for part in portions(range(5), 2)] == [[0, 1], [2, 3], [4]]
    assert list(portions([], 2)) == []


@pytest.mark.parametrize("size", [1, 5, ROWS - 1, ROWS])
def test_the_figures_are_those_of_all_rows_at_once(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    template = ChoiceTemplate(prompt="Review: {text}", suffix=" Sentiment:", options=(" bad", " good"))
    examples = template.encode([Row(row, str(place)) for place, row in enumerate(tiny.rows(ROWS))], tiny.tokenizer())
    engine, done = TorchEngine(tiny.model(), Lora(rank=2)), list[int]()
    whole = Choice().evaluate(engine, examples)
    monkeypatch.setattr(Choice, "portion", size)
    found = Choice().evaluate(engine, examples, done.append)
    assert (found.metric, found.examples) == (whole.metric, ROWS)
    assert found.error == pytest.approx(whole.error)
    assert found.loss == pytest.approx(whole.loss, abs=1e-6)
    assert done == [*range(size, ROWS, size), ROWS]


def test_fewer_texts_are_written_at_once_than_scored() -> None:
    assert Population.portion < Choice.portion
