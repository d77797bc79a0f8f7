"""A folder is claimed before anything is written into it."""

from pathlib import Path

import pytest

from twinpass.errors import JournalError
from twinpass.train.folder import RunFolder
from twinpass.train.journal import Journal


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
