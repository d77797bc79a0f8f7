"""A folder is claimed before anything is written into it."""

from pathlib import Path

import pytest

from twinpass.errors import JournalError
from twinpass.train.folder import RunFolder
from twinpass.train.history import History, Sample
from twinpass.train.journal import Journal
from twinpass.train.run import learned


def test_a_new_run_finds_no_other_and_one_to_go_on_with_is_there(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(JournalError, match="there is no journal here"), folder.claim(new=False):
        pass
    with folder.claim(new=True):
        Journal.create(folder.journal, {}).close()
    with folder.claim(new=False):
        pass
    with pytest.raises(JournalError, match="already holds a run"), folder.claim(new=True):
        pytest.fail("claimed")


@pytest.mark.parametrize(
    ("metrics", "losses", "better"),
    [
        ({}, {}, None),
        ({5: 0.7}, {}, None),
        ({0: 0.5, 5: 0.7}, {}, True),
        ({0: 0.5, 5: 0.7}, {0: 1.0, 5: 2.0}, True),
        ({0: 0.5, 5: 0.5}, {0: 1.0, 5: 0.9}, True),
        ({0: 0.5, 5: 0.5}, {0: 1.0, 5: 1.0}, False),
        ({0: 0.5, 5: 0.5}, {5: 0.9}, False),
        ({0: 0.5, 5: 0.4}, {0: 1.0, 5: 0.9}, False),
    ],
)
def test_a_run_has_learned_where_the_metric_rose_or_the_loss_fell(
    metrics: dict[int, float], losses: dict[int, float], better: bool | None
) -> None:
    history = History(evaluations=metrics, samples={step: Sample(loss, 10) for step, loss in losses.items()})
    assert learned(history, "best") is better
